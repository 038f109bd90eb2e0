"""The evaluations of a lock-step run: in its own thread, between two rounds; a stop ends one at
once.
"""

from __future__ import annotations

import logging

from worldloom_dist.actors.evaluation import EvaluationStoppedError
from worldloom_dist.actors.videos import save_videos
from worldloom_dist.assembly import build_evaluator
from worldloom_dist.outcome import is_as_asked
from worldloom_dist.plan import Plan
from worldloom_dist.ports import WeightSource
from worldloom_dist.report import Report
from worldloom_dist.run_folder import RunFolder
from worldloom_dist.stopping import StopFlag

__all__ = ["LocalEvaluations"]

logger = logging.getLogger(__name__)


class LocalEvaluations:
    """Evaluates the newest weights of one run.

    Args:
        plan: Of the run.
        folder: Where videos go.
        report: Takes the results, and knows how far the run is.
        weights: Of the policy.
        stop: Ends an evaluation.

    Attributes:
        evaluated_at: Env steps at the last one; part of a checkpoint.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, report: Report, weights: WeightSource, stop: StopFlag
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._report = report
        self._weights = weights
        self._stop = stop
        self.evaluated_at = 0

    @property
    def is_current(self) -> bool:
        """True when the newest evaluation is of the weights that the run has now, and as the run
        asks for it.
        """
        newest = self._report.evaluation
        return (
            newest is not None
            and newest["env_steps"] == self._report.env_steps == self.evaluated_at
            and is_as_asked(self._plan, newest)
        )

    def evaluate(self) -> float | None:
        """Evaluate the newest weights; returns the mean return, None when the run was stopped
        meanwhile.

        Raises:
            EnvFailureError, EvaluationStoppedError: If the env fails too often, or it takes too
                long.
        """
        evaluator = build_evaluator(self._plan)
        evaluator.load_weights(self._weights.fetch())
        steps = self._report.env_steps
        try:
            found = evaluator.evaluate(is_stopped=lambda: self._stop.is_set)
        except EvaluationStoppedError:
            if not self._stop.is_set:
                raise
            logger.info(
                "stopping: %s; the evaluation at env_steps %d is left out", self._stop.reason, steps
            )
            return None
        self.evaluated_at = steps
        result = {"env_steps": steps, **found.to_dict()}
        if self._plan.config.eval_videos:
            label = f"eval-{steps:09d}"
            saved = save_videos(
                evaluator.videos, self._folder.videos, label, evaluator.video_problems
            )
            result |= saved.to_dict()
        self._report.note_evaluation(result)
        mean = found.return_mean
        spread = found.return_std
        logger.info("eval at env_steps %d: return %.1f +- %.1f", steps, mean, spread)
        return mean
