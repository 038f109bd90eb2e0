"""What a shard does on the event loop itself, and what it leaves to threads."""

import asyncio
import threading

import numpy as np
import pytest

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.runtime import shard_role as module
from worldloom_dist.runtime.shard_role import InlineShard

COLUMNS = EnvSpec(
    name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))}
).columns()
SAMPLING = SamplingSpec(batch_size=4, length=5, cross_episodes=True)


class Watched(ReplayShard):
    """Keeps which threads were inside."""

    def __init__(self, **more):
        super().__init__(0, COLUMNS, SAMPLING, capacity_rows=100, **more)
        self.threads: list[int] = []

    def append(self, chunk):
        self.threads.append(threading.get_ident())
        return super().append(chunk)

    def draw(self, requests):
        self.threads.append(threading.get_ident())
        return super().draw(requests)


def chunk(seq: int, rows: int = 10) -> Chunk:
    return make_chunk(
        StreamId(0, 0, 0),
        seq,
        NO_POLICY,
        {name: spec.zeros(rows) for name, spec in COLUMNS.items()},
    )


@pytest.fixture
def memory_shard():
    return Watched(durability="none")


def test_small_work_is_done_by_the_loop_itself(memory_shard):
    inline_shard = InlineShard(memory_shard)
    assert asyncio.run(inline_shard.append(chunk(0))) is True
    assert asyncio.run(inline_shard.append(chunk(0))) is False
    given = asyncio.run(inline_shard.sample([SampleRequest(2, (1,)), SampleRequest(3, (2,))]))
    assert set(memory_shard.threads) == {threading.get_ident()}
    np.testing.assert_array_equal(
        given.part(2, 5).decode().row_ids, memory_shard.sample(SampleRequest(3, (2,))).row_ids
    )


def test_too_little_is_said_and_not_raised(memory_shard):
    assert asyncio.run(InlineShard(memory_shard).sample([SampleRequest(2, (1,))])) is None


def test_large_work_is_done_by_a_thread(memory_shard, monkeypatch):
    monkeypatch.setattr(module, "SMALL_CHUNK", 10)
    monkeypatch.setattr(module, "SMALL_DRAW", 10)
    inline_shard = InlineShard(memory_shard)
    asyncio.run(inline_shard.append(chunk(0)))
    assert asyncio.run(inline_shard.sample([SampleRequest(2, (1,))])) is not None
    assert threading.get_ident() not in memory_shard.threads
    assert len(memory_shard.threads) == 2


def test_a_disk_that_is_asked_to_sync_is_waited_for_by_a_thread(tmp_path):
    shard = Watched(durability="fsync", directory=tmp_path)
    asyncio.run(InlineShard(shard).append(chunk(0)))
    shard.close()
    assert threading.get_ident() not in shard.threads


def test_the_loop_goes_on_while_somebody_is_inside_the_shard(memory_shard):
    inline_shard = InlineShard(memory_shard)

    async def scenario():
        await inline_shard.append(chunk(0))
        with memory_shard.lock:
            calls = [
                asyncio.ensure_future(inline_shard.append(chunk(1))),
                asyncio.ensure_future(inline_shard.sample([SampleRequest(2, (1,))])),
            ]
            await asyncio.sleep(0.05)
            were_done = [call.done() for call in calls]
        return were_done, await asyncio.wait_for(asyncio.gather(*calls), 10)

    were_done, (is_new, given) = asyncio.run(scenario())
    assert were_done == [False, False]
    assert is_new is True
    assert given.num_windows == 2
