"""Evaluations on Ray: in the evaluator's process, which answers when it is done.

An evaluation ends by itself (its episodes are cut, and it has a deadline); one that does not is
ended with its process. Called by the driver's thread only, which never waits here but at the end of
the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from worldloom.core.error_text import last_line
from worldloom_dist.interfaces import Evaluator, Learner
from worldloom_dist.rpc.actor_client import submit
from worldloom_dist.run.evaluations import GRACE_S, EvaluationFailedError
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.supervisor import Supervisor

__all__ = ["RemoteEvaluator"]

logger = logging.getLogger(__name__)

POLL_S = 0.25
MODEL_S = 300.0
"""How long the look at a model may take, behind an evaluation."""


class RemoteEvaluator:
    """The evaluator role of one run. Implements
    :class:`worldloom_dist.run.evaluations.EvaluationRunner`.

    Args:
        plan: Of the run.
        supervisor: Of its roles.
        asked_at: Env steps at the last evaluation of the run before a resume.
    """

    def __init__(self, plan: Plan, supervisor: Supervisor, asked_at: int = 0) -> None:
        self._supervisor = supervisor
        self.most_s = plan.eval_timeout_s + GRACE_S
        self._checks_model = plan.config.eval_model
        self._found: dict[str, Any] | None = None
        self._open: Any = None
        self._began = 0.0
        self._noted: Any = None
        self.asked_at = asked_at

    @property
    def is_available(self) -> bool:
        """False when it is given up, or was never started."""
        return any(not role.is_given_up for role in self._supervisor.of_kind("evaluator"))

    def begin(self, env_steps: int, *, is_last: bool) -> bool:
        """Ask for an evaluation; False when there is no evaluator now."""
        evaluators = self._supervisor.of_kind("evaluator")
        role = next((role for role in evaluators if role.handle is not None), None)
        if role is None:
            return False
        self.asked_at = env_steps
        self._open = submit(role.handle, Evaluator.evaluate, env_steps, is_last)
        self._began = time.monotonic()
        return True

    def take(self) -> Mapping[str, Any] | None:
        """The result, once it is there.

        Raises:
            EvaluationFailedError: In place of a result; also when the evaluator did not answer in
                time and is replaced.
        """
        if self._found is not None:
            return self._with_model(self._found)
        ready, _ = ray.wait([self._open], timeout=0.0)
        if not ready and time.monotonic() - self._began < self.most_s:
            return None
        reference = self._open
        self._open = None
        if not ready:
            self._end_process()
            raise EvaluationFailedError(
                f"its evaluator did not answer for {self.most_s:.0f} s and is replaced"
            )
        try:
            found = {"env_steps": self.asked_at, **ray.get(reference)}
        except RayError as error:
            raise EvaluationFailedError(last_line(error)) from error
        role = self._supervisor.roles["evaluator-0"]
        if not self._checks_model or role.handle is None:
            return found
        self._found = found
        self._open = submit(role.handle, Evaluator.check_model)
        self._began = time.monotonic()
        return None

    def _with_model(self, found: dict[str, Any]) -> Mapping[str, Any] | None:
        """An evaluation and what the model said of it, once it is said; without it, when that
        fails or takes too long.
        """
        ready, _ = ray.wait([self._open], timeout=0.0)
        if not ready and time.monotonic() - self._began < MODEL_S:
            return None
        reference = self._open
        self._open = self._found = None
        if not ready:
            logger.warning("the model was not held against the evaluation within %.0f s", MODEL_S)
            self._end_process()
            return found
        try:
            said: dict[str, Any] = ray.get(reference)
            return found | said
        except RayError as error:
            logger.warning("the model was not held against the evaluation: %s", last_line(error))
            return found

    def wait(self) -> None:
        """Look after the roles for a moment."""
        self._supervisor.poll(POLL_S)

    def _end_process(self) -> None:
        """End the evaluator's process, unless the supervisor has done so."""
        handle = self._supervisor.roles["evaluator-0"].handle
        if handle is not None:
            ray.kill(handle)

    def note_score(self, return_mean: float) -> None:
        """Tell the learner, which writes the checkpoints."""
        learner = next(iter(self._supervisor.of_kind("learner")), None)
        if learner is not None and learner.handle is not None:
            self._noted = submit(learner.handle, Learner.note_score, return_mean)

    def close(self) -> None:
        """Wait until the learner has noted the last score; say so where it has not, because the
        checkpoint ``best`` is an older one then.
        """
        if self._noted is None:
            return
        try:
            ray.get(self._noted, timeout=DEADLINES.note_score_s)
        except RayError as error:
            logger.warning(
                "the last score was not noted, so that its checkpoint is not kept as 'best' where "
                "it would be: %s",
                last_line(error),
            )
