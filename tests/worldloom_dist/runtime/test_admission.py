"""Chunks that wait for the coordinator share a question, keep their order, and hear of its end."""

import asyncio

import pytest

from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.runtime.admission import Admission


class SlowLedger:
    """Answers one question after the other, with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.numbers: list[int] = []
        self.answers: asyncio.Queue[int | Exception] = asyncio.Queue()

    async def ask(self, number: int, chunks: list[int]) -> int:
        self.numbers.append(number)
        self.asked.append(list(chunks))
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def run_loop_once() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_chunks_that_arrive_while_a_question_is_open_share_the_next_one():
    async def story() -> None:
        coordinator = SlowLedger()
        admission = Admission(coordinator.ask)
        chunks = [asyncio.ensure_future(admission.admit(steps)) for steps in (5, 6, 7, 8)]
        await run_loop_once()
        assert coordinator.asked in ([[5]], [[5, 6, 7, 8]])
        coordinator.answers.put_nowait(1)
        await run_loop_once()
        assert [chunk.done() for chunk in chunks] == [True, False, False, False]
        assert coordinator.asked[-1] == [6, 7, 8]
        late = asyncio.ensure_future(admission.admit(9))
        coordinator.answers.put_nowait(2)
        await run_loop_once()
        assert coordinator.asked[-1] == [8, 9]
        coordinator.answers.put_nowait(2)
        assert await asyncio.gather(*chunks, late) == [True] * 5
        again = asyncio.ensure_future(admission.admit(3))
        await run_loop_once()
        assert coordinator.asked[-1] == [3], "it starts over after every caller was served"
        assert coordinator.numbers == [*range(1, len(coordinator.asked) + 1)]
        coordinator.answers.put_nowait(1)
        assert await again

    asyncio.run(story())


def test_a_shard_that_has_a_successor_admits_nobody():
    async def story() -> None:
        coordinator = SlowLedger()
        admission = Admission(coordinator.ask)
        chunks = [asyncio.ensure_future(admission.admit(steps)) for steps in (5, 6)]
        coordinator.answers.put_nowait(0)
        assert await asyncio.gather(*chunks) == [False, False]

    asyncio.run(story())


def test_a_coordinator_that_stays_away_is_everybodys_error_and_the_next_chunk_asks_again():
    async def story() -> None:
        coordinator = SlowLedger()
        admission = Admission(coordinator.ask)
        chunks = [asyncio.ensure_future(admission.admit(steps)) for steps in (5, 6)]
        coordinator.answers.put_nowait(RoleGoneError("coordinator-0 did not answer"))
        for chunk in chunks:
            with pytest.raises(RoleGoneError):
                await chunk
        coordinator.answers.put_nowait(1)
        assert await admission.admit(4)

    asyncio.run(story())
