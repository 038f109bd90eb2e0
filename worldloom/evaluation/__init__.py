"""How good a world model is: open-loop errors, reward and continuation, plots and videos; names
load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldloom.evaluation.metrics import EvaluationReport, evaluate_world_model
    from worldloom.evaluation.plots import plot_open_loop, plot_predictions
    from worldloom.evaluation.visualize import (
        imagination_frames,
        save_frames,
        visualize_imagination,
    )

__all__ = [
    "EvaluationReport",
    "evaluate_world_model",
    "imagination_frames",
    "plot_open_loop",
    "plot_predictions",
    "save_frames",
    "visualize_imagination",
]

_HOMES = {
    "metrics": ("EvaluationReport", "evaluate_world_model"),
    "plots": ("plot_open_loop", "plot_predictions"),
    "visualize": ("imagination_frames", "save_frames", "visualize_imagination"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
