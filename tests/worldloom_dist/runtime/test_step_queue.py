"""Workers that wait for steps at the coordinator, without Ray: who gets some, who must send."""

import asyncio

from worldloom_dist.interfaces import InsertQuestion
from worldloom_dist.ports import RowCounters, StepPermit, StepQuestion
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.runtime import step_queue
from worldloom_dist.runtime.coordinator_role import CoordinatorRole


def plan_of(*words: str) -> Plan:
    return resolve(
        parse(["--preset", "debug", "--env", "toy:counting", "--runtime", "ray", *words])
    )


def question(
    slot: int, number: int, made: int = 0, in_chunks: int = 0, least: int = 1
) -> StepQuestion:
    return StepQuestion(slot, 1, number, made, in_chunks, least, 64 * least)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def prefilled(plan: Plan) -> CoordinatorRole:
    """A coordinator of a run whose prefill and pretraining are over, and which owes nothing."""
    coordinator = CoordinatorRole(plan, plan.limits.pretrain_positions)
    await coordinator.join(0, RowCounters(agent_steps=plan.limits.prefill_agent_steps), 10)
    return coordinator


def test_what_waits_gets_steps_when_training_makes_room_in_the_order_of_asking():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = await prefilled(plan)
        room = coordinator.coordinator.limiter.room()
        taken = await coordinator.permit_steps(question(0, 1, least=room))
        assert taken == StepPermit(room)
        waiting = [
            asyncio.ensure_future(coordinator.permit_steps(question(slot, 1))) for slot in (1, 2)
        ]
        await turns()
        assert not any(answer.done() for answer in waiting)
        chunk = InsertQuestion(0, "session", 1, [room], [(0, 1)])
        assert await coordinator.admit(chunk) == 1, "what was permitted comes in at once"
        assert await coordinator.admit_samples(
            "learner-0", "session", plan.spec.sampling.batch_size, [(0, 0, 0)]
        )
        first, second = [await answer for answer in waiting]
        assert first.steps > 0
        assert second.steps > 0

    asyncio.run(story())


def test_a_learner_that_waits_for_rows_gets_what_blocked_workers_hold_in_open_chunks():
    plan = plan_of("--env-steps", "1000000", "--barrier", "True")  # training is never ahead
    batch = ("learner-0", "session", plan.spec.sampling.batch_size, [(0, 0, 0)])

    async def story() -> None:
        coordinator = await prefilled(plan)
        room = coordinator.coordinator.limiter.room()
        assert (await coordinator.permit_steps(question(0, 1, least=room))).steps == room
        asked = question(0, 2, made=room, in_chunks=room, least=room)
        blocked = asyncio.ensure_future(coordinator.permit_steps(asked))
        await turns()
        assert not blocked.done(), "no one waits for its rows"
        sample = asyncio.ensure_future(coordinator.admit_samples(*batch))
        assert await blocked == StepPermit(0, must_send=True)
        assert not sample.done()
        chunk = InsertQuestion(0, "session", 1, [room], [(0, 1)])
        assert await coordinator.admit(chunk) == 1
        await coordinator.stored(0)
        assert await sample
        again = asyncio.ensure_future(coordinator.permit_steps(asked._replace(number=3)))
        await turns()
        assert not again.done(), "the learner has work, so nothing need be sent"
        again.cancel()

    asyncio.run(story())


def test_the_steps_of_a_run_are_handed_out_once_and_then_workers_send_what_they_have():
    plan = plan_of("--env-steps", "3000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)  # nothing can be sampled: no ratio binds
        handed_out = 0
        for slot in range(100):
            permit = await coordinator.permit_steps(question(slot, 1))
            handed_out += permit.steps
            if not permit.steps:
                break
        assert handed_out == 3000
        last = await coordinator.permit_steps(question(0, 2, made=64, in_chunks=64))
        assert last == StepPermit(0, must_send=True)
        await coordinator.worker_down(1, 1)
        again = await coordinator.permit_steps(question(1, 1)._replace(incarnation=2))
        assert again.steps == 64, "what died with a worker is made by another"

    asyncio.run(story())


def test_a_worker_that_waits_hears_soon_and_a_question_that_is_asked_again_is_permitted_once(
    monkeypatch,
):
    monkeypatch.setattr(step_queue, "ASK_AGAIN_S", 0.01)
    plan = plan_of("--env-steps", "1000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        assert await coordinator.permit_steps(question(0, 1)) == StepPermit(0), (
            "it does not know yet what shards have"
        )
        await coordinator.join(0, RowCounters(), 0)
        first = await coordinator.permit_steps(question(0, 2))
        assert first.steps == 64
        assert await coordinator.permit_steps(question(0, 2)) == first
        assert (await coordinator.counts())["steps_in_hand"] == 64
        await coordinator.drain()
        assert await coordinator.permit_steps(question(1, 1)) == StepPermit(0), "it has ended"

    asyncio.run(story())


def test_the_end_of_a_run_wakes_who_waits():
    plan = plan_of("--env-steps", "64")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)
        assert (await coordinator.permit_steps(question(0, 1))).steps == 64
        waiting = asyncio.ensure_future(coordinator.permit_steps(question(1, 1)))
        await turns()
        assert not waiting.done()
        await coordinator.drain()
        assert await waiting == StepPermit(0, must_send=True)

    asyncio.run(story())


def test_a_new_coordinator_counts_on_from_what_the_learner_and_the_workers_say():
    plan = plan_of("--env-steps", "1000000")
    windows = plan.spec.sampling.batch_size
    pretraining = plan.limits.pretrain_positions
    batch = plan.limits.batch_positions

    async def story() -> None:
        coordinator = CoordinatorRole(plan, positions=5)  # an old number of the driver's
        await coordinator.join(
            0, RowCounters(agent_steps=plan.limits.prefill_agent_steps + 1000), 10
        )
        began = pretraining + 10 * batch
        asked = ("learner-0", "session", windows)
        assert await coordinator.admit_samples(*asked, [(0, 0, 0)], began, 3 * batch)
        assert (await coordinator.counts())["positions"] == began + 4 * batch
        # its answer was lost: the learner asks again, and has still taken three
        assert await coordinator.admit_samples(*asked, [(0, 0, 0)], began, 3 * batch)
        assert (await coordinator.counts())["positions"] == began + 4 * batch
        await coordinator.permit_steps(question(3, 7, made=50, in_chunks=8))
        assert (await coordinator.counts())["steps_in_hand"] >= 8
        assert (await coordinator.counts())["updates_lost"] == 0

    asyncio.run(story())


def test_updates_that_died_with_a_learner_are_counted_and_owed(caplog):
    plan = plan_of("--env-steps", "1000000")
    batch = plan.limits.batch_positions

    async def story() -> None:
        saved = plan.limits.pretrain_positions
        coordinator = CoordinatorRole(plan, saved, updates_lost=7)
        owed = plan.limits.prefill_agent_steps + 10_000
        await coordinator.join(0, RowCounters(agent_steps=owed), 10)
        await coordinator.rebase_positions(saved)
        debt = (await coordinator.counts())["debt"]
        asked = ("learner-0", "session", plan.spec.sampling.batch_size)
        for number in range(5):
            assert await coordinator.admit_samples(*asked, [(0, number, 0)], saved, number * batch)
        assert (await coordinator.counts())["debt"] == debt - 5 * batch
        await coordinator.rebase_positions(saved)
        counts = await coordinator.counts()
        assert counts["debt"] == debt, "all of it, in or outside the band"
        assert counts["updates_lost"] == 12
        assert "5 updates were lost" in caplog.text
        for number in range(3):
            assert await coordinator.admit_samples(*asked, [(0, number, 0)], saved, number * batch)
        await coordinator.rebase_positions(saved + batch, trained=saved + 2 * batch)
        counts = await coordinator.counts()
        assert counts["updates_lost"] == 13, "the third was drawn, and never trained"
        assert counts["debt"] == debt - batch
        await coordinator.rebase_positions(saved + batch, trained=saved)
        assert (await coordinator.counts())["updates_lost"] == 13
        stale = await coordinator.admit_samples(*asked, [(0, 9, 0)], saved + 2 * batch, 0)
        assert stale is None, "a predecessor of that learner"

    asyncio.run(story())


def test_a_run_that_goes_on_with_another_ratio_is_forgiven_once_what_lies_outside_the_band():
    plan = plan_of("--env-steps", "1000000")
    batch = plan.limits.batch_positions

    async def story(forgiven: str | None) -> tuple[float, float]:
        coordinator = CoordinatorRole(plan, 100 * batch, forgiven=forgiven)
        counters = RowCounters(agent_steps=plan.limits.prefill_agent_steps + 100_000)
        await coordinator.join(0, counters, 10)
        assert (await coordinator.counts())["forgiven"] == forgiven
        await coordinator.rebase_positions(100 * batch)
        first = (await coordinator.counts())["debt"]
        await coordinator.rebase_positions(90 * batch)
        return first, (await coordinator.counts())["debt"] - 10 * batch

    slack = float(plan.limits.slack_insert)
    assert asyncio.run(story(None)) == (slack, slack)
    owed = asyncio.run(story("0"))
    assert owed[0] == owed[1] > 100 * slack


def test_a_worker_that_is_gone_for_good_leaves_no_steps_in_hand():
    """It asked just before it died, and its question still waits; it has no successor."""
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = await prefilled(plan)
        room = coordinator.coordinator.limiter.room()
        assert (await coordinator.permit_steps(question(0, 1, least=room))).steps == room
        asked = question(1, 1, made=5, in_chunks=5, least=2)
        waiting = asyncio.ensure_future(coordinator.permit_steps(asked))
        await turns()
        assert not waiting.done()
        await coordinator.worker_down(1, 1)
        assert await waiting == StepPermit(0)
        assert (await coordinator.counts())["steps_in_hand"] == room
        late = asyncio.ensure_future(coordinator.permit_steps(asked._replace(number=2)))
        await turns()
        late.cancel()
        assert (await coordinator.counts())["steps_in_hand"] == room, "what the dead asks is void"

    asyncio.run(story())


def test_a_coordinator_that_is_started_again_knows_who_has_ended():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0, ended={1: 1})
        await coordinator.join(0, RowCounters(), 0)
        dead = asyncio.ensure_future(coordinator.permit_steps(question(1, 9, made=7, in_chunks=7)))
        await turns()
        assert not dead.done()
        dead.cancel()
        assert (await coordinator.counts())["steps_in_hand"] == 0
        alive = await coordinator.permit_steps(question(1, 1)._replace(incarnation=2))
        assert alive.steps == 64

    asyncio.run(story())


def test_a_chunk_that_comes_again_is_still_in_hand_once():
    plan = plan_of("--env-steps", "1000000")

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 0)
        await coordinator.join(0, RowCounters(), 0)
        assert (await coordinator.permit_steps(question(0, 1))).steps == 64
        for number in (1, 2):  # the line broke before the answer was read
            assert await coordinator.admit(InsertQuestion(0, "session", number, [40], [(0, 1)]))
        await coordinator.give_back(0, 40, (0, 1))
        counts = await coordinator.counts()
        assert (counts["steps_in_hand"], counts["agent_steps"]) == (24, 40)

    asyncio.run(story())


def test_a_learner_that_says_twice_where_it_begins_has_lost_its_updates_once():
    plan = plan_of("--env-steps", "1000000")
    batch = plan.limits.batch_positions

    async def story() -> None:
        coordinator = CoordinatorRole(plan, 10 * batch)
        await coordinator.join(0, RowCounters(agent_steps=1000), 10)
        for _ in range(2):
            await coordinator.rebase_positions(8 * batch, 11 * batch, 2)
        assert (await coordinator.counts())["updates_lost"] == 3
        await coordinator.rebase_positions(8 * batch, 9 * batch, 3)
        assert (await coordinator.counts())["updates_lost"] == 4

    asyncio.run(story())
