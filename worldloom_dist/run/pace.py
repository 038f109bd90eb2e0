"""How long a run will take on this machine, from its first updates, and which share of it is
prefill.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from worldloom_dist.run.plan import Plan
from worldloom_dist.run.view import duration

__all__ = ["Pace", "prefill_share", "total_updates", "updates_at_once"]

MEASURED_UPDATES = 20
MEASURED_S = 10.0
LONG_S = 60.0
"""After this time fewer updates than MEASURED_UPDATES must do."""
MARK_EVERY_S = 1.0


class Progress(Protocol):
    """What is looked at."""

    @property
    def train_steps(self) -> int:
        """Updates made."""


def total_updates(plan: Plan) -> int:
    """Updates that the whole run makes."""
    if plan.is_offline:
        return plan.config.train_steps
    limits = plan.limits
    owed = max(0, plan.target_agent_steps - limits.prefill_agent_steps) * limits.train_ratio
    return updates_at_once(plan) + int(owed / limits.batch_positions)


def updates_at_once(plan: Plan) -> int:
    """Updates that wait for no env: those before the first step, and the pretraining's."""
    return 0 if plan.is_offline else plan.limits.offline_updates + plan.limits.pretrain_updates


def prefill_share(plan: Plan) -> float:
    """Which part of the env steps is made before the first update, 0 to 1."""
    if plan.is_offline:
        return 0.0
    return min(1.0, plan.limits.prefill_agent_steps / max(1, plan.target_agent_steps))


class Pace:
    """Says once how long the run will take, and once more when it has left its pretraining, whose
    updates wait for no env.

    Args:
        plan: Of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began: tuple[float, int] | None = None
        self._newest = (0.0, 0)
        self._first_steps: int | None = None
        self._is_done = False
        self._marks: deque[tuple[float, int]] = deque()

    def left_s(self, progress: Progress) -> float | None:
        """Seconds to go at the rate of the last minute's updates, of which the whole run makes a
        known number; None before enough of them were made, and when none are left.
        """
        if len(self._marks) < 2:
            return None
        (began_s, first), (ended_s, last) = self._marks[0], self._marks[-1]
        left = total_updates(self._plan) - progress.train_steps
        if left <= 0 or last - first < MEASURED_UPDATES or ended_s - began_s < MEASURED_S:
            return None
        return left * (ended_s - began_s) / (last - first)

    def _mark(self, now_s: float, made: int) -> None:
        """Keep the last minute; updates that wait for no env say nothing of those that come after
        them.
        """
        if self._marks and self._marks[0][1] < updates_at_once(self._plan) <= made:
            self._marks.clear()
        if not self._marks or now_s - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append((now_s, made))
        while now_s - self._marks[0][0] > LONG_S and len(self._marks) > 2:
            self._marks.popleft()

    def look(self, now_s: float, progress: Progress) -> str | None:
        """The sentence, when it is time for it.

        Args:
            now_s: Monotonic time.
            progress: The run's counters now.
        """
        made = progress.train_steps
        if self._first_steps is None:
            self._first_steps = made
        if made > self._first_steps or self._marks:
            self._mark(now_s, made)
        if self._is_done or made <= self._first_steps:
            return None
        if self._began is None:
            self._began = self._newest = (now_s, made)
            return None
        if made != self._newest[1]:
            self._newest = (now_s, made)
        updates = made - self._began[1]
        patience_s = MEASURED_S if updates >= MEASURED_UPDATES else LONG_S
        if updates < 1 or now_s - self._began[0] < patience_s:
            return None
        per_second = updates / (self._newest[0] - self._began[0])
        first = updates_at_once(self._plan)
        is_pretraining = made <= first
        self._is_done = not is_pretraining
        self._began = None
        if is_pretraining:
            self._first_steps = first
        return self._sentence(made, per_second, updates)

    def _sentence(self, made: int, per_second: float, measured: int) -> str:
        left = max(0, total_updates(self._plan) - made)
        text = (
            f"pace     about {duration(left / per_second)} to go on this machine: {left:,} updates "
            f"at {per_second:.3g} a second, measured over {measured:,}"
        )
        share = prefill_share(self._plan)
        return f"{text}; prefill is {share:.0%} of the env steps" if share else text
