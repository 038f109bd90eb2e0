"""What a worker does with its chunks over a line: a real socket on this machine; Ray is a fake that
answers at once.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.loop_threads import LoopThread
from tests.waiting import wait_until
from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom_dist.interfaces import Coordinator
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.connection import Endpoint, Listening, RpcServer
from worldloom_dist.runtime import shard_client as module
from worldloom_dist.runtime.shard_client import ShardWriter

Name = tuple[int, int]
"""Env and number of a chunk."""


def chunk(env: int, seq: int) -> Chunk:
    return Chunk(StreamId(0, 0, env), seq, NO_POLICY, 1, 1, b"rows")


class Shard(LoopThread):
    """Acknowledges chunks, or holds them until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[Name] = []
        self._released = asyncio.Event()
        self._server = RpcServer(self._append, is_private=True)

    @property
    def address(self) -> Endpoint:
        return self.run(self._server.address())

    def release(self) -> None:
        self.soon(self._released.set)

    async def _append(self, chunk: Chunk) -> bool:
        self.arrived.append((chunk.stream.env, chunk.seq))
        await self._released.wait()
        return True


class NoRay:
    """Says where the present shard is, or that there is none; the coordinator owes no update."""

    name = "shard-0"

    def __init__(self) -> None:
        self.shard: Shard | None = None
        self.asked: list[str] = []

    def within(self, **_: float | None) -> "NoRay":
        return self

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(method.__name__)
        if method is Coordinator.updates_due:
            return 0
        if self.shard is None:
            raise RoleGoneError(f"{self.name} did not answer")
        assert method is Listening.address
        return self.shard.address


@contextlib.contextmanager
def shards(count: int) -> Iterator[list[Shard]]:
    made = [Shard() for _ in range(count)]
    try:
        yield made
    finally:
        for shard in made:
            shard.end()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> NoRay:
    fake = NoRay()
    monkeypatch.setattr(module, "shard_client", lambda index: fake)
    monkeypatch.setattr(module, "coordinator_client", lambda: fake)
    return fake


def make(*, is_lockstep: bool = False) -> tuple[ShardWriter, threading.Event]:
    plan = SimpleNamespace(
        config=SimpleNamespace(replay=SimpleNamespace(shards=1)),
        is_lockstep=is_lockstep,
        spec=SimpleNamespace(pretrain_updates=0),
    )
    stopping = threading.Event()
    return ShardWriter(plan, 0, stopping), stopping  # type: ignore[arg-type]


def test_chunk_is_sent_at_once_and_only_the_answer_is_waited_for(ray: NoRay) -> None:
    with shards(1) as (shard,):
        ray.shard = shard
        writer, _ = make()
        waits = [writer.append(chunk(env, 0)) for env in (0, 1)]
        wait_until(lambda: len(shard.arrived) == 2)
        assert shard.arrived == [(0, 0), (1, 0)]
        assert not writer.is_waiting
        began = writer.waited_until
        seen = []
        first, second = waits
        assert first is not None
        assert second is not None
        thread = threading.Thread(target=lambda: (second(), first()))
        thread.start()
        wait_until(lambda: writer.is_waiting)
        seen.append(thread.is_alive())
        shard.release()
        thread.join(10)
        assert seen == [True]
        assert not writer.is_waiting
        assert writer.waited_until > began
        assert shard.arrived == [(0, 0), (1, 0)], "nothing is sent twice"
        writer.close()


def test_chunks_on_their_way_to_a_shard_that_dies_go_to_its_successor(ray: NoRay) -> None:
    with shards(2) as (old, new):
        ray.shard = old
        writer, _ = make()
        waits = [writer.append(chunk(env, 0)) for env in (0, 1)]
        wait_until(lambda: len(old.arrived) == 2)
        ray.shard = new
        old.end()
        new.release()
        for wait in waits:
            assert wait is not None
            wait()
        assert new.arrived == [(0, 0), (1, 0)]
        writer.close()


def test_shard_that_is_away_costs_the_worker_no_wait_before_the_next_chunk(ray: NoRay) -> None:
    with shards(1) as (shard,):
        writer, _ = make()
        wait = writer.append(chunk(0, 0))
        assert wait is not None
        ray.shard = shard
        shard.release()
        wait()
        assert shard.arrived == [(0, 0)]
        writer.close()


def test_worker_that_stops_while_its_shard_is_away_names_the_chunk(ray: NoRay) -> None:
    writer, stopping = make()
    wait = writer.append(chunk(2, 7))
    assert wait is not None
    stopping.set()
    with pytest.raises(
        StateError, match=r"shard-0 is away while the run stops; chunk 0\.0\.2/7 is lost"
    ):
        wait()
    assert not writer.is_waiting


def test_lock_step_waits_for_every_chunk_and_asks_what_it_makes_due(ray: NoRay) -> None:
    with shards(1) as (shard,):
        ray.shard = shard
        shard.release()
        writer, _ = make(is_lockstep=True)
        assert writer.append(chunk(0, 0)) is None
        assert shard.arrived == [(0, 0)]
        assert ray.asked == ["address", "updates_due"]
        writer.close()
