"""Several seeds as one number with an interval, as Agarwal et al. define it ("Deep Reinforcement
Learning at the Edge of the Statistical Precipice", arXiv:2108.13264v4, sections 3 and 4.3, and
their library rliable).

The interquartile mean leaves out the lowest and the highest quarter of runs, so one lucky seed
cannot pull it up. Its interval is a percentile interval of the stratified bootstrap: every task
keeps as many runs as it has, drawn with replacement, and of a run that is drawn the whole curve is
taken. We differ in one point: where a quarter is no whole number of runs, parts of a run count,
while rliable rounds the quarter down. Numpy only.

Legend: R runs, N places of a curve, K resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldloom.core.exceptions import ConfigurationError

__all__ = ["bootstrap_interval", "iqm"]

RESAMPLES = 2000
CONFIDENCE = 0.95
MOST_NUMBERS = 4_000_000
"""Drawn at once: 32 MB."""
Statistic = Callable[[np.ndarray], np.ndarray]


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over axis 0: the mean of the middle half, with parts of a value where a
    quarter is no whole number.

    Args:
        values: ``[R, ...]``.

    Returns:
        ``[...]``.
    """
    count = len(values)
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    result: np.ndarray = np.tensordot(weights / weights.sum(), np.sort(values, axis=0), axes=1)
    return result


def bootstrap_interval(
    tasks: Sequence[np.ndarray],
    statistic: Statistic = iqm,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic over the runs of several tasks, by the stratified
    bootstrap.

    Args:
        tasks: Scores of the runs of each task, ``[R]`` or ``[R, N]`` with one N for all.
        statistic: Of ``[R_all, ...]`` over axis 0.
        confidence: Share of resamples inside.
        resamples: How many.
        seed: Of the draw: equal calls give equal intervals.

    Returns:
        Its lower and upper end, ``[]`` or ``[N]``. Of a single run both are its score.

    Raises:
        ConfigurationError: If there is no task, or one without a run.

    Example:
        >>> low, high = bootstrap_interval([np.array([1.0, 2.0, 3.0])], lambda v: v.mean(axis=0))
        >>> float(low), float(high)
        (1.0, 3.0)
    """
    if not tasks or any(len(task) == 0 for task in tasks):
        raise ConfigurationError("tasks: every task needs at least one run")
    draw = np.random.default_rng(seed)
    numbers = sum(task.size for task in tasks)
    most = max(1, MOST_NUMBERS // numbers)
    found = []
    for begin in range(0, resamples, most):
        count = min(most, resamples - begin)
        drawn = [task[draw.integers(len(task), size=(count, len(task)))] for task in tasks]
        runs_first = np.moveaxis(np.concatenate(drawn, axis=1), 1, 0)  # [R_all, K, ...]
        found.append(statistic(runs_first))
    rest = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(found), [rest, 100 - rest], axis=0)
    return low, high
