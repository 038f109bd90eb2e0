"""Evaluations on Ray: in the evaluator's process, which answers when it is done.

An evaluation ends by itself (its episodes are cut, and it has a deadline); one that does not is
ended with its process. Called by the driver's thread only, which never waits here but at the end of
the run.
"""

from __future__ import annotations

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

POLL_S = 0.25


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
        reference = self._open
        ready, _ = ray.wait([reference], timeout=0.0)
        if not ready and time.monotonic() - self._began < self.most_s:
            return None
        self._open = None
        if not ready:
            ray.kill(self._supervisor.roles["evaluator-0"].handle)
            raise EvaluationFailedError(
                f"its evaluator did not answer for {self.most_s:.0f} s and is replaced"
            )
        try:
            return {"env_steps": self.asked_at, **ray.get(reference)}
        except RayError as error:
            raise EvaluationFailedError(last_line(error)) from error

    def wait(self) -> None:
        """Look after the roles for a moment."""
        self._supervisor.poll(POLL_S)

    def note_score(self, return_mean: float) -> None:
        """Tell the learner, which writes the checkpoints."""
        learner = next(iter(self._supervisor.of_kind("learner")), None)
        if learner is not None and learner.handle is not None:
            self._noted = submit(learner.handle, Learner.note_score, return_mean)

    def close(self) -> None:
        """Wait until the learner has noted the last score."""
        if self._noted is not None:
            ray.wait([self._noted], timeout=DEADLINES.note_score_s)
