"""The counters of a run, and the rates that follow from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from worldloom.core.metrics import MetricMap, Sum
from worldloom_dist.ports import RowCounters

__all__ = ["Counts", "Rates", "increments"]

RATE_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """The run's counters at one moment; all of them over the whole run, those before a resume
    included.

    Attributes:
        counters: Summed over shards.
        positions: Trained positions that the coordinator admitted.
        train_steps: Updates made.
        policy_version: Newest version, as text.
        debt: Positions owed to training.
        forgiven: Positions that are not owed any more, as a fraction in text; None until that is
            known of a run that goes on with other settings of the train ratio.
        updates_lost: Updates that died with the learners that made them, and were owed again.
        blocked_s: Seconds that a side has waited, by ``insert`` and ``sample``.
        lost_open: Rows that no acknowledgement had covered when their worker died.
        drained_workers: Workers that left a machine which was about to go.
        drained_rows: Open rows that they sent before.
        restarts: By kind, since the run was started; those of envs are filled in from what the
            roles report.
    """

    counters: RowCounters = field(default_factory=RowCounters)
    positions: int = 0
    train_steps: int = 0
    policy_version: str = "0.0"
    debt: float = 0.0
    forgiven: str | None = "0"
    updates_lost: int = 0
    blocked_s: Mapping[str, float] = field(default_factory=dict)
    lost_open: int = 0
    drained_workers: int = 0
    drained_rows: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)


class Rates:
    """Env steps and updates per second: over the last seconds, and over the whole run.

    Args:
        action_repeat: Env steps of one decision.
        before: The run's counters before a resume.
        seconds_before: For how long it ran before; 0 for a new run.
    """

    def __init__(
        self, action_repeat: int, before: Counts | None = None, seconds_before: float = 0.0
    ) -> None:
        self._action_repeat = action_repeat
        self._before = before or Counts()
        self._seconds_before = seconds_before
        self._first: tuple[float, Counts] | None = None
        self._recent: deque[tuple[float, Counts]] = deque()
        self.now = {"env_steps_per_s": 0.0, "updates_per_s": 0.0}

    def update(self, now: float, counts: Counts) -> None:
        """Take the counters of a moment (monotonic time)."""
        self._first = self._first or (now, counts)
        self._recent.append((now, counts))
        while len(self._recent) > 2 and now - self._recent[1][0] >= RATE_WINDOW_S:
            self._recent.popleft()
        self.now = self._between(self._recent[0], self._recent[-1])

    @property
    def mean(self) -> dict[str, float]:
        """Over the whole run, with the ``seconds`` that this is."""
        first = self._first or (0.0, self._before)
        last = self._recent[-1] if self._recent else first
        began = first[0] - self._seconds_before
        first = (began, Counts() if self._seconds_before else first[1])
        return {**self._between(first, last), "seconds": last[0] - began}

    def _between(self, start: tuple[float, Counts], end: tuple[float, Counts]) -> dict[str, float]:
        seconds = max(end[0] - start[0], 1e-6)
        agent_steps = end[1].counters.agent_steps - start[1].counters.agent_steps
        updates = end[1].train_steps - start[1].train_steps
        env_steps = agent_steps * self._action_repeat
        return {"env_steps_per_s": env_steps / seconds, "updates_per_s": updates / seconds}


def increments(before: Counts, now: Counts) -> MetricMap:
    """What counters of replay and coordinator have grown by, for the hub."""
    counters = now.counters
    old = before.counters
    values: MetricMap = {
        "replay_inserted_steps_total": Sum(counters.inserted - old.inserted),
        "replay_evicted_steps_total": Sum(counters.evicted - old.evicted),
        "replay_duplicate_steps_total": Sum(counters.duplicate - old.duplicate),
    }
    for side, seconds in now.blocked_s.items():
        fresh = max(0.0, seconds - before.blocked_s.get(side, 0.0))
        values[f"rate_limiter_blocked_seconds_total{{side={side}}}"] = Sum(fresh)
    lost = now.updates_lost - before.updates_lost
    values["learner_updates_lost_total"] = Sum(max(0, lost))
    for kind, count in now.restarts.items():
        values[f"worker_restarts_total{{kind={kind}}}"] = Sum(
            max(0, count - before.restarts.get(kind, 0))
        )
    return values
