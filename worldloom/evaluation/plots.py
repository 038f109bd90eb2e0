"""Plots of an evaluation as PNG files; needs matplotlib."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import MissingDependencyError
from worldloom.core.files import expanded, replacing
from worldloom.evaluation.metrics import EvaluationReport

__all__ = ["check_plots", "plot_open_loop", "plot_predictions"]

MAX_POINTS = 5000


def plot_predictions(report: EvaluationReport, path: str | PathLike[str]) -> Path:
    """Predicted against actual, one step ahead: next state (observation or latent), reward,
    reconstruction.

    Points on the diagonal are exact. A model without reconstruction has two panels.
    """
    check_plots()
    steps = report.steps
    state = steps.obs or steps.latent
    panels = [
        ("State prediction", state[0][0], state[1][0]),
        ("Reward prediction", steps.reward[0][0], steps.reward[1][0]),
    ]
    if steps.reconstruction is not None:
        panels.append(("Observation reconstruction", *steps.reconstruction))
    figure, axes = _figure(len(panels))
    for axis, (title, predicted, actual) in zip(axes, panels, strict=True):
        x = _thinned(actual)
        y = _thinned(predicted)
        axis.scatter(x, y, s=4, alpha=0.5)
        low = float(min(x.min(), y.min()))
        high = float(max(x.max(), y.max()))
        axis.plot([low, high], [low, high], color="grey", linewidth=1)
        axis.set(title=title, xlabel="actual", ylabel="predicted")
    return _saved(figure, path)


def plot_open_loop(report: EvaluationReport, path: str | PathLike[str]) -> Path:
    """Error of latents, and of observations where there are some, over the steps imagined."""
    check_plots()
    curves = {"latent": report.latent_error, "observation": report.obs_error}
    shown = {name: values for name, values in curves.items() if values}
    figure, axes = _figure(len(shown))
    for axis, (name, values) in zip(axes, shown.items(), strict=True):
        axis.plot(range(1, len(values) + 1), values, marker="o", markersize=3)
        axis.set(
            title=f"Open-loop error of the {name}",
            xlabel="steps ahead",
            ylabel="mean squared error",
        )
    return _saved(figure, path)


def check_plots() -> None:
    """Refuse plots where matplotlib is missing, before anything is computed.

    Raises:
        MissingDependencyError: With the line that installs it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("a plot", "matplotlib", "viz") from error


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _thinned(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // MAX_POINTS)]


def _saved(figure: Any, path: str | PathLike[str]) -> Path:
    target = expanded(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=100, format=target.suffix.removeprefix(".") or "png")
    return target
