import asyncio
import dataclasses
import time

import numpy as np
import pytest

from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom_dist.actors import batching
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS
from worldloom_dist.runtime.policy_roles import InferenceRole, batch_sizes


def role_with(**actors: float) -> InferenceRole:
    config = PRESETS["debug"]()
    actors_config = dataclasses.replace(config.actors, **actors)  # type: ignore[arg-type]
    return InferenceRole(
        resolve(dataclasses.replace(config, workers=2, inference="central", actors=actors_config)),
        0,
        0,
    )


def request_of(slot: int, *envs: int) -> ActRequest:
    return ActRequest(
        slot,
        0,
        np.array(envs),
        {"obs": np.zeros((len(envs), 4), np.float32)},
        np.ones(len(envs), bool),
    )


async def answer(requests: list[ActRequest]) -> list[ActReply]:
    return [ActReply({}, {}, NO_POLICY, np.zeros(request.num_rows, bool)) for request in requests]


def test_batch_closes_when_every_worker_that_asks_lately_is_in_it() -> None:
    async def play() -> None:
        role = role_with(max_wait_ms=60_000)
        for slots in ((0, 1), (0, 1)):
            asked = [asyncio.create_task(role.act(request_of(slot, 0, 1))) for slot in slots]
            await asyncio.sleep(0)
            batch = await asyncio.wait_for(role.batcher.next_batch(), 20)
            assert [question.request.slot for question in batch] == [0, 1]
            await role.batcher.answer_batch(batch, answer)
            replies = await asyncio.gather(*asked)
            assert all(reply.waited_s >= 0 and reply.model_s >= 0 for reply in replies)
        assert role.batcher.drain_metrics()["inference_queue_seconds"].count == 4
        assert "inference_queue_seconds" not in role.batcher.drain_metrics()

    asyncio.run(play())


def test_request_that_comes_again_replaces_the_first_and_groups_of_a_worker_do_not() -> None:
    async def play() -> None:
        role = role_with(max_wait_ms=1)
        first, again, other = (
            asyncio.create_task(role.act(request_of(0, env))) for env in (0, 0, 1)
        )
        await asyncio.sleep(0)
        batch = await role.batcher.next_batch()
        assert [question.request.envs.tolist() for question in batch] == [[0], [1]]
        await role.batcher.answer_batch(batch, answer)
        await asyncio.gather(again, other)
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(play())


def test_batch_that_does_not_return_is_told_with_the_next_ping() -> None:
    async def play() -> None:
        role = role_with(act_timeout_s=0.01)
        assert (await role.ping())["stuck"] == ""
        role.batcher.busy_since = time.monotonic() - 1.0
        assert "its policy did not return from a batch" in (await role.ping())["stuck"]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_padded_sizes_double_up_to_the_largest_batch(largest: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == sizes


def test_question_without_rows_is_answered_at_once_with_the_version_that_acts() -> None:
    async def play() -> None:
        role = role_with(max_wait_ms=60_000)
        role.batcher.version = PolicyVersion(1, 7)
        assert (await asyncio.wait_for(role.act(request_of(0)), 20)).version == PolicyVersion(1, 7)
        assert not role.batcher.pending
        assert not role.batcher.clients()

    asyncio.run(play())


class Clock:
    """Stands in for the module ``time``: moves only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def test_time_behind_another_batch_is_told_apart_and_counts_as_waiting_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slowly(requests: list[ActRequest]) -> list[ActReply]:
        late.append(asyncio.create_task(role.act(request_of(1, 0))))
        await asyncio.sleep(0)
        clock.now_s += 0.3
        return await answer(requests)

    async def play() -> None:
        first = asyncio.create_task(role.act(request_of(0, 0)))
        # another one that asks lately, so that batches stay open for it
        role.batcher.seen[2] = clock.now_s
        await asyncio.sleep(0)
        await role.batcher.answer_batch(await role.batcher.next_batch(), slowly)
        reply = await first
        assert (reply.busy_s, reply.waited_s, reply.model_s) == (0.0, 0.0, pytest.approx(0.3))
        batch = (
            await role.batcher.next_batch()
        )  # at once: its request has waited for longer than 250 ms
        clock.now_s += 0.1
        await role.batcher.answer_batch(batch, answer)
        reply = await late[0]
        assert (reply.busy_s, reply.waited_s) == (pytest.approx(0.3), pytest.approx(0.1))

    role = role_with(max_wait_ms=250)
    late = []
    clock = Clock()
    monkeypatch.setattr(batching, "time", clock)
    asyncio.run(play())
