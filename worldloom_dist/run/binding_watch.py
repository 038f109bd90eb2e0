"""What binds a run, over the last minute or two, told once and when it changes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

from worldloom_dist.run.bottleneck import UNKNOWN, Bottleneck, Use, diagnose
from worldloom_dist.run.machine import learner_has_gpu
from worldloom_dist.run.plan import Plan

__all__ = ["BindingWatch"]

logger = logging.getLogger(__name__)

BINDING_WINDOW_S = 60.0
SECONDS = ("learner_seconds_total", "actor_seconds_total")


def _by_label(values: Mapping[str, float], name: str) -> dict[str, float]:
    """``NAME{label=x}`` -> value as x -> value."""
    start = name + "{"
    return {
        key.rpartition("=")[2].rstrip("}"): value
        for key, value in values.items()
        if key.startswith(start)
    }


class BindingWatch:
    """Remembers where learner and workers spent their seconds.

    Args:
        plan: Of the run.
        now: Monotonic time at its start.
    """

    def __init__(self, plan: Plan, now: float) -> None:
        self._plan = plan
        self._uses: deque[tuple[float, dict[str, float]]] = deque([(now, {"sample": 0.0})])
        self._said_at = now
        self._said = ""

    @property
    def binding(self) -> Bottleneck:
        """What binds the run, over the last minute or two (or the run, while it is younger)."""
        (began, before), (now, after) = self._uses[0], self._uses[-1]
        config = self._plan.config
        past = {key: max(0.0, value - before.get(key, 0.0)) for key, value in after.items()}
        return diagnose(
            Use(
                seconds=now - began,
                learner=_by_label(past, "learner_seconds_total"),
                actors=_by_label(past, "actor_seconds_total"),
                samples_refused=past["sample"],
                workers=config.workers,
                has_gpu=learner_has_gpu(config.learner.device, is_local=config.runtime == "local"),
            )
        )

    def update(self, now: float, snapshot: Mapping[str, float], sample_blocked_s: float) -> None:
        """Remember the seconds spent so far, and say what binds, once and when it changes."""
        spent = {key: value for key, value in snapshot.items() if key.startswith(SECONDS)}
        self._uses.append((now, {**spent, "sample": sample_blocked_s}))
        while len(self._uses) > 2 and now - self._uses[1][0] >= BINDING_WINDOW_S:
            self._uses.popleft()
        if now - self._said_at >= BINDING_WINDOW_S:
            self._said_at = now
            binding = self.binding
            if binding.resource not in (UNKNOWN, self._said):
                self._said = binding.resource
                logger.info("%s", binding)
