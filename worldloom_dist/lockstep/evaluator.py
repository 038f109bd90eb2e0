"""The evaluations of a lock-step run: in its own thread, between two rounds; a stop ends one at
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from worldloom.core.exceptions import EnvFailureError
from worldloom.core.protocol import Agent
from worldloom_dist.actors.evaluation import EvaluationStoppedError
from worldloom_dist.actors.videos import save_videos
from worldloom_dist.ports import WeightSource
from worldloom_dist.run.builders import build_evaluator
from worldloom_dist.run.evaluations import EvaluationFailedError
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.model_check import check_model
from worldloom_dist.run.plan import Plan
from worldloom_dist.run.signals import StopFlag

__all__ = ["LocalEvaluator"]

logger = logging.getLogger(__name__)


class LocalEvaluator:
    """Evaluates the newest weights of one run. Implements
    :class:`worldloom_dist.run.evaluations.EvaluationRunner`.

    Args:
        plan: Of the run.
        folder: Where videos go.
        weights: Of the policy.
        stop: Ends an evaluation.
        note_score: Takes the mean return.
        device: Where the policy decides.
        agent: What trains, for what its model says of the episodes.

    Attributes:
        asked_at: Env steps at the last one; part of a checkpoint.
    """

    is_available = True

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        weights: WeightSource,
        stop: StopFlag,
        note_score: Callable[[float], None],
        device: str = "cpu",
        agent: Agent | None = None,
    ) -> None:
        self._plan = plan
        self._agent = agent
        self.device = device
        self._folder = folder
        self._weights = weights
        self._stop = stop
        self._result: Mapping[str, Any] | None = None
        self._failure: EnvFailureError | None = None
        self.note_score = note_score
        self.asked_at = 0

    def begin(self, env_steps: int, *, is_last: bool) -> bool:
        """Evaluate the newest weights; False when the run was stopped meanwhile.

        Raises:
            EnvFailureError, EvaluationStoppedError: If the env fails too often, or it takes too
                long. Of several tasks one whose env fails costs the evaluation, which
                :meth:`take` says, and not the run: the other tasks go on.
        """
        evaluator = build_evaluator(self._plan, device=self.device)
        evaluator.load_weights(self._weights.fetch())
        try:
            found = evaluator.evaluate(is_stopped=lambda: self._stop.is_set)
        except EvaluationStoppedError:
            if not self._stop.is_set:
                raise
            logger.info("the evaluation at env_steps %d is left out", env_steps)
            return False
        except EnvFailureError as error:
            if not self._plan.env_spec.tasks:
                raise
            self.asked_at, self._failure = env_steps, error
            return True
        self.asked_at = env_steps
        result = {"env_steps": env_steps, **found.to_dict(), "version": tuple(found.version)}
        if self._agent is not None:
            result |= check_model(self._plan, self._agent, evaluator.probes)
        if self._plan.config.eval_videos:
            label = f"eval-{env_steps:09d}"
            saved = save_videos(
                evaluator.videos,
                self._folder.videos,
                label,
                evaluator.video_problems,
                evaluator.video_names,
            )
            result |= saved.to_dict()
        self._result = result
        return True

    def take(self) -> Mapping[str, Any] | None:
        """The result, once.

        Raises:
            EvaluationFailedError: In place of a result.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise EvaluationFailedError(str(failure)) from failure
        result = self._result
        self._result = None
        return result

    def wait(self) -> None:
        """Nothing goes on beside this thread."""

    def close(self) -> None:
        """Nothing is left to write."""
