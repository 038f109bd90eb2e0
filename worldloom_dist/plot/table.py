"""A comparison of runs as text: one line per run, one per experiment with several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from worldloom.evaluation.seeds import bootstrap_interval, iqm
from worldloom_dist.plot.runs import Experiment, Run, experiments_of
from worldloom_dist.run.curves import EVALUATION
from worldloom_dist.run.text_table import aligned
from worldloom_dist.run.view import duration

__all__ = ["table_of"]

HEADS = ("run", "agent", "seed", "status", "env steps", "updates", "time", "eval return", "best")
RIGHT = ("seed", "env steps", "updates", "time", "eval return", "best")


def table_of(runs: Sequence[Run]) -> str:
    """The runs by env and experiment: how far each is, its last evaluation with the deviation over
    episodes, and its best one; of several seeds that are about as far the interquartile mean with
    its 95 % interval.
    """
    blocks = []
    for env, experiments in experiments_of(runs).items():
        lines: list[tuple[str, ...]] = [HEADS]
        notes: list[str] = []
        for experiment in experiments:
            lines += [_line(run, experiment.label) for run in experiment.runs]
            notes += _notes(experiment)
        blocks.append("\n".join([env, *aligned(lines, RIGHT), *notes]))
    return "\n\n".join(blocks)


def _notes(experiment: Experiment) -> Iterator[str]:
    """The last evaluation over seeds, that of each task, and which seeds are not as far and left
    out.
    """
    last = experiment.abreast(EVALUATION)
    if len(last) > 1:
        values = np.array([curve.values[-1] for curve in last.values()])
        low, high = bootstrap_interval([values])
        yield (
            f"{experiment.label}: last evaluation {float(iqm(values)):.1f} "
            f"[{float(low):.1f}, {float(high):.1f}] over {experiment.counted(EVALUATION, last)} "
            "(interquartile mean, 95 % interval)"
        )
    for run in experiment.runs:
        ends = [(task.env, task.curve(EVALUATION)) for task in run.tasks]
        known = [f"{env} {curve.values[-1]:.1f}" for env, curve in ends if curve is not None]
        if known:
            yield f"{run.name}: last evaluation by task: {', '.join(known)}"
        curve = run.curve(EVALUATION)
        if curve is not None and run not in last:
            word = "updates" if run.is_offline else "env steps"
            yield (
                f"{experiment.label}: {run.name} ({run.status}) is left out of it, because its "
                f"last evaluation is at {curve.steps[-1]:,.0f} {word}"
            )


def _line(run: Run, label: str) -> tuple[str, ...]:
    summary = run.summary
    curve = run.curve(EVALUATION)
    last, best = "-", "-"
    if curve is not None and curve.high is not None:
        last = f"{curve.values[-1]:.1f} ± {curve.high[-1] - curve.values[-1]:.1f}"
        best = f"{curve.values.max():.1f}"
    newest = run.history.rows[-1] if run.history.rows else None
    env_steps = newest.env_steps if newest else summary.get("env_steps", 0)
    updates = newest.updates if newest else summary.get("train_steps", 0)
    seconds = summary.get("wall_time_s") or (3600 * newest.hours if newest else 0.0)
    return (
        run.name,
        label,
        str(run.seed),
        run.status,
        "-" if run.is_offline else f"{env_steps:,.0f}",
        f"{updates:,.0f}",
        duration(seconds),
        last,
        best,
    )
