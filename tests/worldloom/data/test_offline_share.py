"""Batches mixed of rows from files and rows of the run, in a share that a schedule says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.files_apart import FilesApart
from worldloom.data.offline_share import OfflineShare, parse_share
from worldloom.data.selectors import FILE, POLICY, Prioritised, Uniform
from worldloom.data.sequence_buffer import SequenceBuffer

FLAG = ArraySpec((), "bool")
COLUMNS = {
    "obs": ArraySpec((1,)),
    "action": ArraySpec((1,)),
    "reward": ArraySpec(()),
    **dict.fromkeys(("is_first", "terminated", "truncated"), FLAG),
}
RUN = StreamId(0, 1, 0)
LOADED = StreamId(0, -7, 0)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("0.5", {0: 0.5, 10**6: 0.5}),
        ("1.0:0.1@20000", {0: 1.0, 5_000: 0.55, 10_000: 0.1, 10**6: 0.1}),
        ("0:1@10", {0: 0.0, 5: 1.0}),
        (" 1 ", {3: 1.0}),
    ],
)
def test_a_share_is_constant_or_goes_in_a_line_over_env_steps(text, at):
    share = parse_share(text, action_repeat=2)
    assert {steps: pytest.approx(share.at(steps)) for steps in at} == at


@pytest.mark.parametrize(
    "text", ["", "1.5", "-0.1", "nan", "a", "1:0", "1:0@0", "1:2@5", "1@5", "0.5:0.1@1.5", "e"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"say for example 0\.5, or 1\.0:0\.1@20000"):
        parse_share(text)


def test_the_mean_number_of_windows_is_the_share_exactly():
    share = OfflineShare(0.3, 0.3)
    rng = np.random.default_rng(0)
    counts = [share.windows(16, 0, rng) for _ in range(4000)]
    assert set(counts) == {4, 5}
    assert np.mean(counts) == pytest.approx(4.8, abs=0.05)


def chunk(rows):
    columns = {name: np.zeros((rows, *spec.shape), spec.dtype) for name, spec in COLUMNS.items()}
    columns["is_first"][0] = True
    return columns


def buffer_of(capacity=100, *, online=False):
    sampling = SamplingSpec(batch_size=4, length=2, online=online)
    return SequenceBuffer(
        COLUMNS,
        sampling,
        capacity_rows=capacity,
        selector=FilesApart(capacity, Uniform(capacity)),
    )


def from_files(buffer, drawn):
    """Of drawn windows, those that begin where the loaded rows are."""
    return int(np.isin(drawn.plain.row_ids[:, 0], buffer.loaded).sum())


@pytest.mark.parametrize("online", [False, True])
def test_a_draw_has_the_windows_of_each_kind_that_were_asked_for(online):
    buffer = buffer_of(online=online)
    buffer.append(LOADED, 0, chunk(30))
    buffer.loaded = np.arange(30)
    buffer.append(RUN, 0, chunk(40))
    for wanted in (0, 3, 8):
        drawn = buffer.draw([(8, np.random.default_rng(wanted))], [wanted])
        assert len(drawn.plain.row_ids) == 8
        assert from_files(buffer, drawn) == wanted
    assert buffer.starts.drawn == (24 - 11, 11)
    assert buffer.starts.file_count == 30 - 1


def test_where_one_kind_has_no_windows_the_other_gives_all():
    buffer = buffer_of()
    buffer.append(LOADED, 0, chunk(30))
    buffer.loaded = np.arange(30)
    assert from_files(buffer, buffer.draw([(8, np.random.default_rng(0))], [2])) == 8
    buffer.append(RUN, 0, chunk(90))  # evicts most of them, and then all
    buffer.append(RUN, 1, chunk(90))
    assert buffer.starts.file_count == 0
    assert from_files(buffer, buffer.draw([(8, np.random.default_rng(0))], [8])) == 0


@given(
    sources=st.lists(st.booleans(), min_size=1, max_size=40),
    gone=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_two_kinds_together_are_what_is_present(sources, gone, seed):
    apart = FilesApart(40, Prioritised(40))
    slots = np.arange(len(sources))
    is_file = np.array(sources)
    apart.note_sources(slots, np.where(is_file, FILE, POLICY).astype(np.uint8))
    apart.add(slots)
    removed = np.array(sorted(slot for slot in gone if slot < len(slots)), np.int64)
    apart.remove(removed)
    left = np.setdiff1d(slots, removed)
    assert apart.num_files == is_file[left].sum()
    assert apart.num_others == (~is_file[left]).sum()
    if not len(left):
        return
    rng = np.random.default_rng(seed)
    apart.update(left, rng.uniform(0.5, 2, len(left)))
    drawn = apart.sample([(200, rng)], 0)
    assert set(drawn) <= set(left)
    saved = apart.export_weights(left)
    again = FilesApart(40, Prioritised(40))
    again.note_sources(slots, np.where(is_file, FILE, POLICY).astype(np.uint8))
    again.add(left)
    again.restore_weights(left, saved)
    one, two = (a.sample([(50, np.random.default_rng(1))], 0) for a in (apart, again))
    np.testing.assert_array_equal(one, two)
