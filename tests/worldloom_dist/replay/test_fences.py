"""Streams of a gateway's session: how far they got, who chose what, and that no one writes them
once they are fenced; all of it through a restart.
"""

import numpy as np
import pytest

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import make_chunk
from worldloom.data.selector_spec import parse_selector
from worldloom_dist.ports import (
    CHUNK_SOURCES,
    FIRST_GATEWAY_SLOT,
    FIRST_STEP,
    FencedError,
    SampleRequest,
)
from worldloom_dist.replay.shard import ReplayShard

COLUMNS = {
    "obs": ArraySpec((1,)),
    "action": ArraySpec((1,)),
    "reward": ArraySpec(()),
    **dict.fromkeys(("is_first", "terminated", "truncated"), ArraySpec((), "bool")),
}
SLOT = FIRST_GATEWAY_SLOT + 3


def shard_in(folder, durability="journal") -> ReplayShard:
    return ReplayShard(
        0,
        COLUMNS,
        SamplingSpec(batch_size=2, length=2),
        capacity_rows=100,
        directory=folder,
        durability=durability,
        make_selector=parse_selector("source:human").build,
    )


def chunk(seq, step, count, *, env=0, incarnation=1, sources=None, slot=SLOT):
    rows = {name: spec.zeros(count) for name, spec in COLUMNS.items()}
    rows["obs"][:, 0] = step + np.arange(count)
    rows["is_first"][0] = seq == 0
    notes = {FIRST_STEP: step} | ({CHUNK_SOURCES: sources} if sources else {})
    return make_chunk(StreamId(slot, incarnation, env), seq, PolicyVersion(1, 1), rows, (), notes)


def test_a_shard_says_how_far_a_session_got_and_takes_no_more_of_it(tmp_path) -> None:
    shard = shard_in(tmp_path)
    shard.append(chunk(0, 0, 4))
    shard.append(chunk(1, 4, 3))
    shard.append(chunk(0, 10, 2, env=2))
    shard.append(chunk(0, 0, 5, incarnation=2))
    shard.close()
    shard = shard_in(tmp_path)  # what it knows is in the chunks
    assert shard.fence(SLOT, 1) == {0: 7, 2: 12}
    assert shard.fence(SLOT, 1) == {0: 7, 2: 12}
    assert shard.fence(SLOT, 9) == {}
    rows = shard.row_counters().inserted
    for late in (chunk(2, 7, 2), chunk(0, 0, 4), chunk(0, 0, 1, incarnation=9)):
        with pytest.raises(FencedError, match="takes no more rows"):
            shard.append(late)
    shard.append(chunk(1, 5, 2, incarnation=2))
    assert shard.row_counters().inserted == rows + 2
    shard.close()
    shard = shard_in(tmp_path)
    with pytest.raises(FencedError):
        shard.append(chunk(2, 7, 2))
    shard.append(chunk(2, 7, 2, incarnation=2))
    shard.close()


def test_a_shard_without_a_journal_fences_too(tmp_path) -> None:
    shard = shard_in(None, "none")
    shard.append(chunk(0, 0, 4))
    assert shard.fence(SLOT, 1) == {0: 4}
    with pytest.raises(FencedError):
        shard.append(chunk(1, 4, 2))


def test_streams_of_workers_are_not_looked_into(tmp_path) -> None:
    shard = shard_in(None, "none")
    shard.append(chunk(0, 0, 4, slot=3))
    assert shard.fence(3, 1) == {}


def test_sources_are_known_again_after_a_restart(tmp_path) -> None:
    shard = shard_in(tmp_path)
    shard.append(chunk(0, 0, 4))
    shard.append(chunk(1, 4, 4, sources=[1, 2, 1, 1]))
    shard.append(chunk(2, 8, 4))
    shard.close()
    shard = shard_in(tmp_path)
    columns = shard.sample(SampleRequest(20, (1, 2))).columns
    assert set(columns["obs"][:, 0, 0].tolist()) == {5.0}
    shard.close()
