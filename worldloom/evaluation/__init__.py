"""How good a world model is: open-loop errors, reward and continuation, plots and videos; names
load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

if TYPE_CHECKING:
    from worldloom.evaluation.metrics import EvaluationReport, evaluate_world_model
    from worldloom.evaluation.plots import plot_open_loop, plot_predictions
    from worldloom.evaluation.seeds import bootstrap_interval, iqm
    from worldloom.evaluation.visualize import (
        imagination_frames,
        save_frames,
        visualize_imagination,
    )

__all__ = [
    "EvaluationReport",
    "bootstrap_interval",
    "evaluate_world_model",
    "imagination_frames",
    "iqm",
    "plot_open_loop",
    "plot_predictions",
    "save_frames",
    "visualize_imagination",
]

_HOMES = {
    "evaluation.metrics": ("EvaluationReport", "evaluate_world_model"),
    "evaluation.plots": ("plot_open_loop", "plot_predictions"),
    "evaluation.seeds": ("bootstrap_interval", "iqm"),
    "evaluation.visualize": ("imagination_frames", "save_frames", "visualize_imagination"),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
