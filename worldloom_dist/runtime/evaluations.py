"""When a run on Ray evaluates: now and then while it trains, and at its end just the weights it
leaves.

One evaluation at a time goes on in the evaluator's process. It ends by itself (its episodes are
cut, and it has a deadline); one that does not is ended with its process. Called by the driver's
thread only, which never waits here but at the end of the run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from worldloom_dist.interfaces import Evaluator, Learner
from worldloom_dist.outcome import is_as_asked
from worldloom_dist.plan import Plan
from worldloom_dist.report import Report
from worldloom_dist.rpc.actor_client import submit
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.intervals import Interval
from worldloom_dist.runtime.supervisor import Supervisor
from worldloom_dist.stopping import StopFlag

__all__ = ["Evaluations"]

logger = logging.getLogger(__name__)

POLL_S = 0.25
SAY_EVERY_S = 10.0
LAST_TRIES = 2


class Evaluations:
    """The evaluations of one run.

    Args:
        plan: Of the run.
        supervisor: Of its roles.
        report: Takes the results.

    Attributes:
        failure: Why the newest evaluation failed; empty when it did not.
    """

    def __init__(self, plan: Plan, supervisor: Supervisor, report: Report) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._report = report
        self._asked_at = int((report.evaluation or {}).get("env_steps", 0))
        self._open: tuple[int, Any] | None = None
        self._began = 0.0
        self._noted: Any = None
        self.failure = ""

    def look(self) -> None:
        """Take a result that is there, and begin what is due."""
        self._collect()
        every = self._plan.config.eval_every
        steps = self._report.env_steps
        has_trained = self._report.counts.train_steps > self._plan.spec.pretrain_updates
        if every and self._open is None and has_trained and steps - self._asked_at >= every:
            self._begin(steps)

    def last(self, version: tuple[int, ...], stop: StopFlag) -> Mapping[str, Any] | None:
        """Evaluate the weights of the last checkpoint, unless that has been done; a stop leaves it
        out.

        Returns:
            Their evaluation, None when there is none.
        """
        config = self._plan.config
        tries = 0
        say = Interval(SAY_EVERY_S)
        one_s = config.eval_timeout_s + DEADLINES.evaluation_grace_s
        deadline = time.monotonic() + LAST_TRIES * one_s + DEADLINES.start_s
        while config.eval_episodes and time.monotonic() < deadline and not stop.is_set:
            if self._open is None:
                if self._of(version) or tries == LAST_TRIES or not self._has_evaluator():
                    break
                tries += self._begin(self._report.env_steps, is_last=True)
            self._supervisor.poll(POLL_S)
            self._collect()
            if self._open is not None and say.is_due():
                logger.info(
                    "the last evaluation goes on, for at most %.0f s; Ctrl-C leaves it out",
                    config.eval_timeout_s,
                )
        if self._noted is not None:
            ray.wait([self._noted], timeout=DEADLINES.note_score_s)
        return self._of(version)

    def _of(self, version: tuple[int, ...]) -> Mapping[str, Any] | None:
        """The newest evaluation, if it is of these weights, and as the run asks for it."""
        newest = self._report.evaluation
        if newest is None or tuple(newest.get("version") or ()) != version:
            return None
        return newest if is_as_asked(self._plan, newest) else None

    def _has_evaluator(self) -> bool:
        return any(not role.is_given_up for role in self._supervisor.of_kind("evaluator"))

    def _begin(self, steps: int, *, is_last: bool = False) -> bool:
        """Returns False when there is no evaluator now."""
        evaluators = self._supervisor.of_kind("evaluator")
        role = next((role for role in evaluators if role.handle is not None), None)
        if role is None:
            return False
        self._asked_at = steps
        self._open = (steps, submit(role.handle, Evaluator.evaluate, steps, is_last))
        self._began = time.monotonic()
        return True

    def _collect(self) -> None:
        if self._open is None:
            return
        steps, reference = self._open
        ready, _ = ray.wait([reference], timeout=0.0)
        most_s = self._plan.config.eval_timeout_s + DEADLINES.evaluation_grace_s
        if not ready and time.monotonic() - self._began < most_s:
            return
        self._open = None
        if not ready:
            self._fail(steps, f"its evaluator did not answer for {most_s:.0f} s and is replaced")
            ray.kill(self._supervisor.roles["evaluator-0"].handle)
            return
        try:
            result = {"env_steps": steps, **ray.get(reference)}
        except RayError as error:
            self._fail(steps, str(error).strip().splitlines()[-1])
            return
        self.failure = ""
        self._report.note_evaluation(result)
        logger.info(
            "eval at env_steps %s: return %.1f +- %.1f over %d episodes",
            f"{result['env_steps']:,}",
            result["return_mean"],
            result["return_std"],
            result["episodes"],
        )
        learner = next(iter(self._supervisor.of_kind("learner")), None)
        is_finite = math.isfinite(result["return_mean"])
        if is_finite and learner is not None and learner.handle is not None:
            self._noted = submit(learner.handle, Learner.note_score, result["return_mean"])

    def _fail(self, steps: int, why: str) -> None:
        self.failure = why
        logger.warning("evaluation at %d env steps failed: %s", steps, why)
