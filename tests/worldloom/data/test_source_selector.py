"""Windows drawn by who chose the action of their first row."""

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.selector_spec import parse_selector
from worldloom.data.selectors import SOURCES
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom_client.wire import SOURCES as ON_THE_WIRE

COLUMNS = {
    "obs": ArraySpec((1,)),
    "reward": ArraySpec(()),
    **dict.fromkeys(("is_first", "terminated", "truncated"), ArraySpec((), "bool")),
}


def buffer_with(selector: str, capacity: int = 64) -> SequenceBuffer:
    made = parse_selector(selector).build(capacity)
    sampling = SamplingSpec(batch_size=4, length=2)
    return SequenceBuffer(COLUMNS, sampling, capacity_rows=capacity, selector=made)


def append(buffer: SequenceBuffer, seq: int, count: int, sources=None) -> None:
    rows = {name: spec.zeros(count) for name, spec in COLUMNS.items()}
    rows["obs"][:, 0] = np.arange(count) + 100 * seq
    rows["is_first"][0] = seq == 0
    buffer.append(StreamId(0, 0, 0), seq, rows, sources=sources)


def drawn(buffer: SequenceBuffer, count: int = 200) -> np.ndarray:
    windows = buffer.draw([(count, np.random.default_rng(0))]).decode()
    return windows.columns["obs"][:, 0, 0]


def test_only_windows_that_a_person_begins_are_drawn() -> None:
    buffer = buffer_with("source:human")
    append(buffer, 0, 10)
    append(buffer, 1, 6, [1, 2, 2, 1, 3, 2])
    append(buffer, 2, 4)
    assert set(drawn(buffer)) == {101, 102, 105}


def test_all_windows_are_drawn_while_there_is_none_of_the_source() -> None:
    buffer = buffer_with("source:human")
    append(buffer, 0, 10)
    assert set(drawn(buffer)) == set(range(9))


def test_a_share_of_the_windows_is_of_the_source() -> None:
    buffer = buffer_with("0.5*source:human+0.5*uniform")
    append(buffer, 0, 40)
    append(buffer, 1, 4, [2, 2, 1, 1])
    share = np.isin(drawn(buffer, 4000), (100, 101)).mean()
    assert 0.47 < share < 0.57


def test_a_place_in_the_ring_forgets_whose_row_it_held() -> None:
    buffer = buffer_with("source:human", capacity=12)
    append(buffer, 0, 6, [2] * 6)
    for seq in range(1, 8):
        append(buffer, seq, 3)
    assert len(set(drawn(buffer))) == 11


def test_sources_are_those_of_the_wire() -> None:
    assert SOURCES == {**ON_THE_WIRE, "file": 5}


@pytest.mark.parametrize("text", ["source", "source:", "source:cat", "0.5*source:2+0.5*uniform"])
def test_a_source_that_is_none_is_refused(text) -> None:
    with pytest.raises(ConfigurationError, match="names no source; say source: and one of policy"):
        parse_selector(text)
