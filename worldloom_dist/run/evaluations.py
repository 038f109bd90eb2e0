"""When a run evaluates: now and then while it trains, and at its end just the weights it leaves.

One evaluation at a time. Where it happens is the runtime's: the :class:`EvaluationRunner` of the
lock-step runtime evaluates in the run's own thread, the one on Ray in a process beside it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from worldloom.core.exceptions import WorldLoomError
from worldloom_dist.run.closing import evaluation_text
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.outcome import is_as_asked
from worldloom_dist.run.plan import Plan
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag

__all__ = ["EvaluationFailedError", "EvaluationRunner", "Evaluations"]

logger = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
GRACE_S = 120.0
"""An evaluation has this long beyond its own deadline, to build policy and envs."""
START_S = 180.0
"""How long an evaluator may take to start, when it is needed at the end of a run."""
LAST_TRIES = 2


class EvaluationFailedError(WorldLoomError):
    """One evaluation gave no result; the run goes on, and a later one may succeed."""


class EvaluationRunner(Protocol):
    """Evaluates the newest weights.

    Attributes:
        asked_at: Env steps of the run when the last evaluation was begun.
    """

    asked_at: int

    @property
    def is_available(self) -> bool:
        """False when there is none, and none will come."""

    def begin(self, env_steps: int, *, is_last: bool) -> bool:
        """Begin an evaluation; False when that is not possible now.

        Args:
            env_steps: Of the run.
            is_last: No newer weights will come.
        """

    def take(self) -> Mapping[str, Any] | None:
        """The result as in ``summary.json``, once; None while there is none.

        Raises:
            EvaluationFailedError: In place of a result.
        """

    def wait(self) -> None:
        """Let a short time pass while an evaluation goes on."""

    def note_score(self, score: float) -> None:
        """The newest weights got this finite score, of one task the mean return: keep the best
        checkpoint by it.
        """

    def close(self) -> None:
        """Let what was noted be written."""


class Evaluations:
    """The evaluations of one run.

    Args:
        plan: Of the run.
        report: Takes the results, and knows how far the run is.
        evaluator: Does the work.

    Attributes:
        failure: Why the newest evaluation failed; empty when it did not.
    """

    def __init__(self, plan: Plan, report: Report, evaluator: EvaluationRunner) -> None:
        self._plan = plan
        self._report = report
        self.evaluator = evaluator
        self._is_open = False
        # what the offline updates came to is measured before much is made online
        offline = plan.config.offline_steps and plan.config.eval_every
        self._is_first_due = bool(offline) and report.evaluation is None
        self.failure = ""

    def look(self) -> None:
        """Take a result that is there, and begin what is due; at the end that is :meth:`last`."""
        self._collect()
        config = self._plan.config
        due_at = self.evaluator.asked_at + config.eval_every
        is_due = config.eval_every and self._report.env_steps >= due_at
        if (
            (is_due or self._is_first_due)
            and config.eval_episodes
            and not self._is_open
            and not self._plan.has_all_steps(self._report.counts)
            and self._plan.is_pretrained(self._report.counts.train_steps)
        ):
            self._is_first_due = not self._begin() and self._is_first_due
            self._collect()

    def last(self, version: str, stop: StopFlag) -> Mapping[str, Any] | None:
        """Evaluate the weights of the last checkpoint, unless that has been done; a stop leaves it
        out.

        Args:
            version: Of those weights.
            stop: Set when the user does not want to wait.

        Returns:
            Their evaluation, None when there is none.
        """
        config = self._plan.config
        tries = 0
        say = Interval(SAY_EVERY_S)
        deadline = time.monotonic() + LAST_TRIES * (self._plan.eval_timeout_s + GRACE_S) + START_S
        while config.eval_episodes and time.monotonic() < deadline and not stop.is_set:
            if not self._is_open:
                if self._of(version) or tries == LAST_TRIES or not self.evaluator.is_available:
                    break
                tries += self._begin(is_last=True)
            self.evaluator.wait()
            self._collect()
            if self._is_open and say.is_due():
                logger.info(
                    "the last evaluation goes on, for at most %.0f s; Ctrl-C leaves it out",
                    self._plan.eval_timeout_s,
                )
        self.evaluator.close()
        return self._of(version)

    def _of(self, version: str) -> Mapping[str, Any] | None:
        """The newest evaluation, if it is of these weights, and as the run asks for it."""
        newest = self._report.evaluation
        if newest is None or ".".join(map(str, newest.get("version") or ())) != version:
            return None
        return newest if is_as_asked(self._plan, newest) else None

    def _begin(self, *, is_last: bool = False) -> bool:
        self._is_open = self.evaluator.begin(self._report.env_steps, is_last=is_last)
        return self._is_open

    def _collect(self) -> None:
        if not self._is_open:
            return
        try:
            result = self.evaluator.take()
        except EvaluationFailedError as error:
            self._is_open = False
            self.failure = str(error)
            self._report.evaluations_failed += 1
            logger.warning(
                "evaluation at %d env steps failed: %s", self.evaluator.asked_at, self.failure
            )
            return
        if result is None:
            return
        self._is_open = False
        self.failure = ""
        self._report.note_evaluation(result)
        logger.info(
            "eval at env_steps %s: %s %s",
            f"{result['env_steps']:,}",
            "score" if "score" in result else "return",
            evaluation_text(result),
        )
        score = result.get("score", result["return_mean"])  # returns of tasks do not compare
        if math.isfinite(score):
            self.evaluator.note_score(score)
