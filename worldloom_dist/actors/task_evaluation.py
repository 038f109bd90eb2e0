"""The evaluation of several tasks: one task after the other, each as if it were alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from worldloom.core.exceptions import EnvFailureError
from worldloom.core.specs import TaskSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.evaluation.trust import Probes
from worldloom_dist.actors.evaluation import Evaluation, EvaluationStoppedError, Evaluator

__all__ = ["TaskEvaluator"]


class TaskEvaluator:
    """As :class:`~worldloom_dist.actors.evaluation.Evaluator`, for several tasks.

    What a task comes to depends on no other one: each begins with the same random state, in envs of
    its own.

    Args:
        evaluators: Of each task, all with one policy.

    Attributes:
        videos, video_problems: Of all tasks of the last evaluation.
        video_names: Of each video, ``TASK-0``.
        probes: Of each task; see :class:`~worldloom_dist.actors.evaluation.Evaluator`.
    """

    def __init__(self, evaluators: Sequence[tuple[TaskSpec, Evaluator]]) -> None:
        self._evaluators = list(evaluators)
        self.videos: list[np.ndarray] = []
        self.video_problems: list[str] = []
        self.video_names: list[str] = []
        self.probes: dict[str, Probes | None] = {}

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Evaluate these weights from now on."""
        for _, evaluator in self._evaluators:
            evaluator.load_weights(snapshot)

    def evaluate(
        self, episodes: int | None = None, *, is_stopped: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        """Play episodes of every task; see
        :meth:`worldloom_dist.actors.evaluation.Evaluator.evaluate`.

        Args:
            episodes: How many of each task.
            is_stopped: Asked before every decision; True gives the evaluation up.

        Raises:
            ConfigurationError, EnvFailureError: As there.
            EvaluationStoppedError: As there; the time is that of all tasks together.
        """
        began = time.monotonic()
        found: list[tuple[TaskSpec, Evaluation]] = []
        self.videos, self.video_problems, self.video_names = [], [], []
        self.probes = {}
        for task, evaluator in self._evaluators:
            spent_s = time.monotonic() - began
            try:
                played = evaluator.evaluate(episodes, is_stopped=is_stopped, spent_s=spent_s)
            except (EvaluationStoppedError, EnvFailureError) as error:
                raise type(error)(
                    f"{error} (task {task.name}, {len(found)} of {len(self._evaluators)} tasks "
                    "were done)"
                ) from error
            found.append((task, played))
            self.probes[task.name] = evaluator.probes
            self.videos += evaluator.videos
            self.video_names += [f"{task.name}-{i}" for i in range(len(evaluator.videos))]
            self.video_problems += [f"{task.name}: {why}" for why in evaluator.video_problems]
        return _joined(found)


def _joined(found: Sequence[tuple[TaskSpec, Evaluation]]) -> Evaluation:
    """All tasks as one evaluation, whose mean is that of the tasks' means: each played equally
    many episodes.
    """
    parts = [part for _, part in found]
    lost: dict[int, str] = {}
    first = 0
    for task, part in found:
        lost |= {first + env: f"{task.name}: {why}" for env, why in part.lost_envs.items()}
        first += len(part.returns)
    scores = {task.name: task.score_of(part.return_mean) for task, part in found}
    return Evaluation(
        tuple(value for part in parts for value in part.returns),
        tuple(value for part in parts for value in part.lengths),
        parts[0].version,
        lost,
        sum(part.cut_episodes for part in parts),
        {task.name: part for task, part in found},
        {name: score for name, score in scores.items() if score is not None},
    )
