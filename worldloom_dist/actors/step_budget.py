"""The agent steps that a worker may make: asked for before its envs act, a few decisions at a time.

    before a decision   take(n): enough left, or wait for the coordinator's answer
    after its rows      spent(k): ask for the next ones, while the envs step

So all that workers have in open chunks is bound by the train ratio, and they stop where the run's
steps end. A worker that waits sends its open chunks when others wait for them. Unblocked by: the
coordinator's answer, at least once a second; the end of the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from worldloom_dist.ports import StepPermit, StepQuestion

__all__ = ["StepBudget"]

DECISIONS_AT_ONCE = 64


class StepBudget:
    """The budget of one worker; used by its thread, for all groups of its envs.

    Args:
        slot, incarnation: Of the worker.
        submit: Sends a question; what it returns waits for the answer.
        is_stopping: True when the worker is to end.
        on_wait: Called before every wait.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        slot: int,
        incarnation: int,
        submit: Callable[[StepQuestion], Callable[[], StepPermit]],
        is_stopping: Callable[[], bool],
        on_wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slot = slot
        self._incarnation = incarnation
        self._submit = submit
        self._is_stopping = is_stopping
        self._on_wait = on_wait
        self._clock = clock
        self._groups: list[tuple[Callable[[], int], Callable[[], None]]] = []
        self._left = 0
        self._made = 0
        self._asked = 0
        self._least = 1
        self._answer: Callable[[], StepPermit] | None = None
        self._waited_s = 0.0

    def join(self, in_chunks: Callable[[], int], flush: Callable[[], None]) -> None:
        """A group of envs uses this budget.

        Args:
            in_chunks: Its agent steps that are not acknowledged.
            flush: Sends them, and returns when they are.
        """
        self._groups.append((in_chunks, flush))

    def take(self, steps: int) -> bool:
        """Wait until a decision that makes up to ``steps`` steps may be made; False when the worker
        is to end.
        """
        if self._left >= steps:
            return True
        self._least = max(self._least, steps)
        while self._left < steps:
            if self._is_stopping():
                return False
            self._on_wait()
            started = self._clock()
            try:
                self._wait()
            finally:
                self._waited_s += self._clock() - started
        return True

    def _wait(self) -> None:
        """Until an answer is there; it may permit nothing."""
        self._ask()
        assert self._answer is not None
        answer = self._answer
        self._answer = None
        permit = answer()
        self._left = permit.steps
        if permit.must_send:
            for _, flush in self._groups:
                flush()

    def spent(self, steps: int) -> None:
        """A decision has made this number of steps, and they are written."""
        self._made += steps
        self._left -= steps
        if self._left < self._least:
            self._ask()

    def drain_waited_s(self) -> float:
        """Seconds spent waiting since the last call."""
        waited_s = self._waited_s
        self._waited_s = 0.0
        return waited_s

    def _ask(self) -> None:
        """Ask, unless a question is open. What is left is returned by asking."""
        if self._answer is not None:
            return
        self._left = 0
        self._asked += 1
        self._answer = self._submit(
            StepQuestion(
                self._slot,
                self._incarnation,
                self._asked,
                self._made,
                sum(in_chunks() for in_chunks, _ in self._groups),
                self._least,
                DECISIONS_AT_ONCE * self._least,
            )
        )
