"""Workers that wait for their next agent steps, in the order in which they asked.

A permit is given as soon as training, or what another worker has returned, makes room for it. While
a learner waits for rows, or the run has no steps left, workers that wait are told to send what they
have in open chunks: otherwise both sides would wait for each other.
"""

from __future__ import annotations

import asyncio

from worldloom_dist.ports import StepPermit, StepQuestion
from worldloom_dist.replay.coordinator import ReplayCoordinator

__all__ = ["StepQueue"]

ASK_AGAIN_S = 1.0
"""A worker that waits hears from here at least this often, and looks whether it is to stop."""


class StepQueue:
    """The waiting workers of one run; lives on the coordinator's event loop.

    Args:
        coordinator: Knows what may be made.
        target: Agent steps of the whole run.
    """

    def __init__(self, coordinator: ReplayCoordinator, target: int) -> None:
        self._coordinator = coordinator
        self._target = target
        self._waiting: dict[int, tuple[StepQuestion, asyncio.Future[StepPermit]]] = {}
        self._answered: dict[int, tuple[int, int, StepPermit]] = {}
        self._hungry: set[str] = set()
        self._is_open = False
        self._is_closed = False

    async def ask(self, question: StepQuestion) -> StepPermit:
        """The worker's next steps; none of them after a second without."""
        incarnation, number, permit = self._answered.get(question.slot, (-1, 0, StepPermit(0)))
        if (incarnation, number) == (question.incarnation, question.number):
            return permit
        answer: asyncio.Future[StepPermit] = asyncio.get_running_loop().create_future()
        self._waiting.pop(question.slot, None)  # an earlier question has no one who waits for it
        self._waiting[question.slot] = question, answer
        self.serve(is_open=self._is_open)
        try:
            return await asyncio.wait_for(answer, ASK_AGAIN_S)
        except TimeoutError:
            return StepPermit(0)
        finally:
            if self._waiting.get(question.slot, (None, None))[1] is answer:
                del self._waiting[question.slot]

    def hungry(self, learner: str) -> None:
        """A learner rank waits for rows."""
        if learner not in self._hungry:
            self._hungry.add(learner)
            self.serve(is_open=self._is_open)

    def fed(self, learner: str) -> None:
        """It waits no more."""
        self._hungry.discard(learner)

    def gone(self, slot: int, incarnation: int) -> None:
        """A worker has ended: no one waits for what it asked."""
        question, answer = self._waiting.get(slot, (None, None))
        if question is not None and answer is not None and question.incarnation <= incarnation:
            self._answer(question, answer, StepPermit(0))

    def close(self) -> None:
        """The run ends: no more steps are made, and what workers have in hand is wanted."""
        self._is_closed = True
        for question, answer in list(self._waiting.values()):
            self._answer(question, answer, StepPermit(0, must_send=True))

    def serve(self, *, is_open: bool) -> None:
        """Answer whom there is an answer for.

        Args:
            is_open: False until the coordinator knows what shards hold.
        """
        self._is_open = is_open
        if not is_open or self._is_closed:
            return
        is_refused = False
        for question, answer in list(self._waiting.values()):
            if answer.done():  # it waited for a second, and asks again
                continue
            steps = 0 if is_refused else self._coordinator.try_make(question, self._target)
            if steps:
                self._answer(question, answer, StepPermit(steps))
                continue
            is_refused = True  # in their order: who asks for less does not overtake
            if not self._wants_rows():
                return
            if question.in_chunks:
                self._answer(question, answer, StepPermit(0, must_send=True))

    def _wants_rows(self) -> bool:
        is_complete = self._coordinator.limiter.steps_made >= self._target
        return is_complete or bool(self._hungry)

    def _answer(
        self, question: StepQuestion, answer: asyncio.Future[StepPermit], permit: StepPermit
    ) -> None:
        del self._waiting[question.slot]
        if not answer.done():
            self._answered[question.slot] = question.incarnation, question.number, permit
            answer.set_result(permit)
