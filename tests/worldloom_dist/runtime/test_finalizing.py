"""When a run ends, a shard's final counters holds every row that it stored, and nothing is stored
after it.
"""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom.data.codec import make_chunk
from worldloom_dist.interfaces import Coordinator
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime import shard_role
from worldloom_dist.runtime.shard_role import ShardRole

PLAN = resolve(
    parse(
        [
            "--preset",
            "debug",
            "--env",
            "toy:counting",
            "--runtime",
            "ray",
            "--replay.durability",
            "none",
        ]
    )
)


class CoordinatorFake:
    """Keeps what it is told, in order."""

    def __init__(self):
        self.told = []

    def within(self, **_):
        return self

    def notify(self, method, *arguments):
        self.told.append((method, arguments))

    async def acall(self, method, *arguments, **_):
        self.notify(method, *arguments)

    @property
    def agent_steps(self) -> int:
        """Of the newest report."""
        return next(
            arguments[1].agent_steps
            for method, arguments in reversed(self.told)
            if method is Coordinator.report
        )


@pytest.fixture
def coordinator(monkeypatch):
    """It admits everything."""

    async def permit(question):
        return len(question.chunks)

    fake = CoordinatorFake()
    monkeypatch.setattr(shard_role, "coordinator_client", lambda: fake)
    monkeypatch.setattr(shard_role, "AsyncRpcClient", lambda *_: SimpleNamespace(call=permit))
    monkeypatch.setattr(shard_role, "Reporter", lambda *_: SimpleNamespace(emit=lambda *_: None))
    monkeypatch.setattr(shard_role, "REPORT_AT_MOST_EVERY_S", 60.0)
    return fake


@pytest.fixture
def role(tmp_path, coordinator):
    """A shard that has joined the coordinator."""
    role = ShardRole(PLAN, 0, tmp_path)
    role.joined.set()
    return role


def chunk(seq: int, rows: int = 8) -> Chunk:
    columns = {
        name: np.zeros((rows, *spec.shape), spec.dtype) for name, spec in PLAN.columns.items()
    }
    return make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, columns)


def test_the_last_word_comes_at_once_though_regular_reports_are_spaced(role, coordinator):
    async def story():
        await role.append(chunk(0))
        await role.append(chunk(1))
        assert coordinator.agent_steps == 8, "the second report is due in a moment"
        await role.finalize()
        assert coordinator.agent_steps == 16

    asyncio.run(story())


def test_what_is_being_stored_belongs_to_the_last_word_and_nothing_comes_after_it(
    role, coordinator, monkeypatch
):
    may_store = threading.Event()
    begun = asyncio.Event()
    real = role.inline_shard.append

    async def slow(one):
        begun.set()
        await asyncio.to_thread(may_store.wait)
        return await real(one)

    monkeypatch.setattr(role.inline_shard, "append", slow)

    async def story():
        storing = asyncio.ensure_future(role.append(chunk(0)))
        await begun.wait()
        finalizing = asyncio.ensure_future(role.finalize())
        await asyncio.sleep(0.05)
        assert not finalizing.done()
        with pytest.raises(StateError, match="the run has ended"):
            await role.append(chunk(1))
        may_store.set()
        counters = await finalizing
        assert await storing
        assert coordinator.agent_steps == counters.agent_steps == 8
        assert (Coordinator.give_back, (0, 8, (0, 0))) in coordinator.told, (
            "what was permitted to the chunk that was refused"
        )

    asyncio.run(story())
    assert role.shard.row_counters().inserted == 8


def test_a_shard_that_has_not_joined_yet_has_no_last_word(role, coordinator):
    role.joined.clear()

    async def story():
        finalizing = asyncio.ensure_future(role.finalize())
        await asyncio.sleep(0.05)
        assert not finalizing.done(), "what its disk lost may not be declared yet"
        role.joined.set()
        assert (await finalizing).inserted == 0

    asyncio.run(story())


def test_a_last_word_reaches_the_caller_also_when_the_coordinator_is_gone(
    role, coordinator, monkeypatch
):
    async def gone(*_, **__):
        raise RoleGoneError("coordinator-0 did not answer")

    async def story():
        await role.append(chunk(0))
        monkeypatch.setattr(coordinator, "acall", gone)
        assert (await role.finalize()).agent_steps == 8

    asyncio.run(story())
