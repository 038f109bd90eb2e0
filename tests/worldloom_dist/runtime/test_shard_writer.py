"""What a worker does with its chunks over a line: a real socket on this machine; Ray is a fake that
answers at once.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.connection import Endpoint, RpcServer
from worldloom_dist.runtime import shard_client
from worldloom_dist.runtime.shard_client import ShardWriter

Name = tuple[int, int]
"""Env and number of a chunk."""


def chunk(env: int, seq: int) -> Chunk:
    return Chunk(StreamId(0, 0, env), seq, NO_POLICY, 1, 1, b"rows")


class Shard:
    """Acknowledges chunks, or holds them until it is released; lives in a thread of its own."""

    def __init__(self) -> None:
        self.arrived: list[Name] = []
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self._door = RpcServer(self._append, is_private=True)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    @property
    def address(self) -> Endpoint:
        return asyncio.run_coroutine_threadsafe(self._door.address(), self._loop).result(10)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def await_chunks(self, count: int) -> None:
        give_up = time.monotonic() + 10
        while len(self.arrived) < count:
            assert time.monotonic() < give_up
            time.sleep(0.001)

    def end(self) -> None:
        """As kill -9 would: every line breaks."""

        async def break_lines() -> None:
            if self._door._opening is not None:
                (await self._door._opening).close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            for transport in [t for t in self._loop._transports.values() if not t.is_closing()]:  # type: ignore[attr-defined]
                transport.abort()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(break_lines(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

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

    def call(
        self, method: str, *args: Any, timeout_s: float | None = 30.0, patience_s: float = 60.0
    ) -> Any:
        self.asked.append(method)
        if method == "updates_due":
            return 0
        if self.shard is None:
            raise RoleGoneError(f"{self.name} did not answer")
        assert method == "address"
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
    monkeypatch.setattr(shard_client, "ActorClient", lambda name: fake)
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
        shard.await_chunks(2)
        assert shard.arrived == [(0, 0), (1, 0)]
        assert not writer.is_waiting
        began = writer.waited_until
        seen = []
        first, second = waits
        assert first is not None
        assert second is not None
        thread = threading.Thread(target=lambda: (second(), first()))
        thread.start()
        while not writer.is_waiting:
            time.sleep(0.001)
        seen.append(thread.is_alive())
        shard.release()
        thread.join(10)
        assert seen == [True]
        assert not writer.is_waiting
        assert writer.waited_until > began
        assert shard.arrived == [(0, 0), (1, 0)], "nothing is sent twice"
        writer._line.close()


def test_chunks_on_their_way_to_a_shard_that_dies_go_to_its_successor(ray: NoRay) -> None:
    with shards(2) as (old, new):
        ray.shard = old
        writer, _ = make()
        waits = [writer.append(chunk(env, 0)) for env in (0, 1)]
        old.await_chunks(2)
        ray.shard = new
        old.end()
        new.release()
        for wait in waits:
            assert wait is not None
            wait()
        assert new.arrived == [(0, 0), (1, 0)]
        writer._line.close()


def test_shard_that_is_away_costs_the_worker_no_wait_before_the_next_chunk(ray: NoRay) -> None:
    with shards(1) as (shard,):
        writer, _ = make()
        wait = writer.append(chunk(0, 0))
        assert wait is not None
        ray.shard = shard
        shard.release()
        wait()
        assert shard.arrived == [(0, 0)]
        writer._line.close()


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
        writer._line.close()
