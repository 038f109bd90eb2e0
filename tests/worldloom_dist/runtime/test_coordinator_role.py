"""The coordinator as a role, without Ray: what it lets through, and when."""

import asyncio
import dataclasses

import pytest

from tests.worldloom_dist.local_runs import write_pendulum_rows
from worldloom_dist.interfaces import InsertQuestion
from worldloom_dist.ports import RowCounters
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.runtime import coordinator_role as coordinator_module
from worldloom_dist.runtime.coordinator_role import CoordinatorRole
from worldloom_dist.runtime.deadlines import DEADLINES


def plan_of(*words: str) -> Plan:
    return resolve(
        parse(["--preset", "debug", "--env", "toy:counting", "--runtime", "ray", *words])
    )


async def samples_soon(coordinator: CoordinatorRole, plan: Plan) -> bool:
    """Whether a batch is admitted without anything else happening."""
    asked = asyncio.ensure_future(
        coordinator.admit_samples(
            "learner-0", "session", plan.spec.sampling.batch_size, [(0, 0, 0)]
        )
    )
    for _ in range(20):
        await asyncio.sleep(0)
    is_admitted = asked.done()
    asked.cancel()
    return is_admitted


async def agent_steps(coordinator: CoordinatorRole) -> int:
    """What it has admitted."""
    return (await coordinator.counts())["agent_steps"]


@pytest.mark.parametrize("lockstep", [True, False])
def test_in_lock_step_samples_wait_until_what_was_admitted_is_stored(lockstep):
    plan = plan_of(*(["--barrier", "True"] if lockstep else []))

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 10)
        assert (
            await coordinator.admit(
                InsertQuestion(0, "first", 1, [plan.spec.prefill_agent_steps + 64])
            )
            == 1
        )
        assert await samples_soon(coordinator, plan) != lockstep, (
            "the ratio allows it, but a shard is still storing"
        )
        await coordinator.stored(0)
        assert await samples_soon(coordinator, plan)
        assert await coordinator.admit(InsertQuestion(0, "first", 2, [0])) == 1, (
            "rows of a reset alone, which change what is drawn too"
        )
        assert await samples_soon(coordinator, plan) != lockstep
        # the shard died with it, and its successor has what it has
        found = RowCounters(agent_steps=plan.spec.prefill_agent_steps + 1000)
        await coordinator.join(0, found, 10)
        await coordinator.stored(0)
        assert await samples_soon(coordinator, plan)

    asyncio.run(story())


def test_of_the_chunks_that_wait_as_many_are_admitted_as_the_ratio_allows():
    plan = plan_of("--env-steps", "1000000")
    pretraining = plan.spec.pretrain_updates * plan.spec.sampling.trained_positions

    async def story() -> None:
        coordinator = CoordinatorRole(plan, pretraining)
        await coordinator.join(0, RowCounters(agent_steps=plan.spec.prefill_agent_steps), 10)
        chunks = [16] * 1000
        permitted = await coordinator.admit(InsertQuestion(0, "session", 1, chunks))
        assert 0 < permitted < 1000
        assert await agent_steps(coordinator) == plan.spec.prefill_agent_steps + 16 * permitted
        waiting = asyncio.ensure_future(coordinator.admit(InsertQuestion(0, "session", 2, chunks)))
        await asyncio.sleep(0)
        assert not waiting.done()
        while not waiting.done():
            assert await samples_soon(coordinator, plan)
        assert 0 < await waiting < 1000, "training made room, and who waited was woken"
        waiting = asyncio.ensure_future(coordinator.admit(InsertQuestion(0, "session", 3, chunks)))
        await asyncio.sleep(0)
        await coordinator.drain()
        assert await waiting == 1000, "when the run ends everything goes in"

    asyncio.run(story())


def test_a_question_that_is_asked_again_is_permitted_once():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 10)
        chunks = [16] * 1000
        permitted = await coordinator.admit(InsertQuestion(0, "session", 1, chunks))
        assert await agent_steps(coordinator) == 16 * permitted > 0
        assert await coordinator.admit(InsertQuestion(0, "session", 1, chunks)) == permitted
        assert await agent_steps(coordinator) == 16 * permitted, (
            "its answer was lost, its permit was not"
        )
        first, again = (
            asyncio.ensure_future(coordinator.admit(InsertQuestion(0, "session", 2, chunks)))
            for _ in range(2)
        )
        await asyncio.sleep(0)
        assert not first.done()
        assert not again.done()
        await coordinator.drain()
        assert await first == await again == 1000, "one that waited while it was asked again"
        assert await agent_steps(coordinator) == 16 * (permitted + 1000)
        assert await coordinator.admit(InsertQuestion(0, "session", 1, [16])) == 0, (
            "no one waits for an answer to an earlier one"
        )
        assert await coordinator.admit(InsertQuestion(0, "next", 1, [16])) == 1, (
            "a shard that was started again counts from 0"
        )
        assert await agent_steps(coordinator) == 16 * (permitted + 1001)

    asyncio.run(story())


def test_what_a_dead_shard_still_waits_for_is_not_permitted_when_its_successor_joins():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 10, "dead")
        chunks = [16] * 1000
        assert await coordinator.admit(InsertQuestion(0, "dead", 1, chunks)) > 0
        open_still = asyncio.ensure_future(coordinator.admit(InsertQuestion(0, "dead", 2, chunks)))
        await asyncio.sleep(0)
        assert not open_still.done()
        await coordinator.shard_down(0)
        # it makes room: what was permitted is not all stored
        await coordinator.join(0, RowCounters(agent_steps=32), 10, "successor")
        assert await open_still == 0
        assert await agent_steps(coordinator) == 32

    asyncio.run(story())


def test_a_run_that_ends_while_shards_are_missing_lets_in_what_is_open_once_all_are_there():
    plan = plan_of("--replay.shards", "2")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)
        await coordinator.drain()
        waiting = asyncio.ensure_future(coordinator.admit(InsertQuestion(0, "session", 1, [16])))
        await asyncio.sleep(0)
        assert not waiting.done()
        await coordinator.join(1, RowCounters(), 0)
        assert await waiting == 1
        assert (await coordinator.counts())["agent_steps"] == 16

    asyncio.run(story())


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_silent_shard_is_left_out_until_it_is_heard_and_keeps_its_permits(lockstep, monkeypatch):
    plan = plan_of("--replay.shards", "2", *(["--barrier", "True"] if lockstep else []))
    clock = [100.0]
    monkeypatch.setattr(coordinator_module.time, "monotonic", lambda: clock[0])

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        counters = RowCounters()
        for shard in range(2):
            await coordinator.join(shard, counters, 10)
        assert await coordinator.admit(InsertQuestion(1, "session", 1, [16])) == 1
        clock[0] += DEADLINES.shard_silent_s / 2
        await coordinator.report(0, counters, 10)
        assert await coordinator.is_live(1)
        clock[0] += DEADLINES.deaf_s
        await coordinator.report(0, counters, 10)
        clock[0] += 0.1
        await coordinator.report(0, counters, 10)
        assert await coordinator.is_live(1) == lockstep
        assert set(await coordinator.split(100, (1, 2))) == ({0, 1} if lockstep else {0})
        await coordinator.report(1, counters, 10)
        assert await coordinator.is_live(1)
        assert set(await coordinator.split(100, (1, 2))) == {0, 1}
        assert (await coordinator.counts())["agent_steps"] == 16, (
            "what was permitted to it before is still on its way"
        )

    asyncio.run(story())


def test_a_coordinator_that_stood_still_takes_nobody_for_silent(monkeypatch):
    plan = plan_of("--replay.shards", "3")
    clock = [100.0]
    monkeypatch.setattr(coordinator_module.time, "monotonic", lambda: clock[0])

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        counters = RowCounters()
        for shard in range(3):
            await coordinator.join(shard, counters, 10)
        clock[0] += 60.0
        await coordinator.report(2, counters, 10)
        assert [await coordinator.is_live(shard) for shard in range(3)] == [True] * 3
        for _ in range(5):
            clock[0] += 1.0
            await coordinator.report(2, counters, 10)
        assert [await coordinator.is_live(shard) for shard in range(3)] == [False, False, True]

    asyncio.run(story())


def test_what_a_dead_learner_still_waits_for_is_not_permitted_to_it_after_its_successor_began():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)
        question = ("learner-0", "dead", plan.spec.sampling.batch_size, [(0, 0, 0)])
        waiting = asyncio.ensure_future(coordinator.admit_samples(*question))
        await asyncio.sleep(0)
        await coordinator.rebase_positions(0)
        await coordinator.join(
            0, RowCounters(agent_steps=1000), 10
        )  # now there is plenty to train on
        assert await waiting is None
        assert (await coordinator.counts())["positions"] == 0
        assert await coordinator.admit_samples("learner-0", "successor", *question[2:])

    asyncio.run(story())


def test_a_learner_that_ends_waits_for_no_permit():
    plan = plan_of()

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)
        waiting = asyncio.ensure_future(
            coordinator.admit_samples("learner-0", "session", 16, [(0, 0, 0)])
        )
        other = asyncio.ensure_future(
            coordinator.admit_samples("learner-1", "session", 16, [(0, 1, 0)])
        )
        await asyncio.sleep(0)
        await coordinator.dismiss("learner-0", "an earlier session")
        await asyncio.sleep(0)
        assert not waiting.done(), "who has a successor dismisses itself only"
        await coordinator.dismiss("learner-0", "session")
        assert await waiting is None
        assert not other.done()
        other.cancel()

    asyncio.run(story())


def test_a_new_coordinator_asks_shards_for_what_the_driver_knows_they_have():
    plan = plan_of()
    known = RowCounters(inserted=100, stored=80, evicted=20, agent_steps=90)

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0, {"0": dataclasses.asdict(known)})
        assert await coordinator.last_counters(0) == known
        # its disk was empty, and it owned up
        found = RowCounters(inserted=100, evicted=20, lost_acked=80, agent_steps=90)
        await coordinator.join(0, found, 0)
        assert await coordinator.last_counters(0) == found
        counts = await coordinator.counts()
        assert counts["counters"]["lost_acked"] == 80
        assert counts["shards"] == {"0": dataclasses.asdict(found)}

    asyncio.run(story())


def test_windows_that_a_shard_could_not_give_are_mixed_as_the_batch_was_to_be(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    words = ["--preset", "debug", "--env", "gym:Pendulum-v1", "--replay.shards", "2"]
    share = ["--replay.load", rows, "--replay.offline-share", "0.75"]
    plan = resolve(parse([*words, *share]))

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 1000, file_windows=10)
        await coordinator.join(1, RowCounters(), 10, file_windows=10)
        parts = await coordinator.split(8, (1, 2))
        assert sum(part.windows for part in parts.values()) == 8
        assert sum(part.files for part in parts.values()) == 6

    asyncio.run(story())
