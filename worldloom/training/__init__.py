"""Offline training of world models: replay, trainer, callbacks, checkpoints; names load on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldloom.training.callbacks import Callback, CheckpointCallback, LoggingCallback
    from worldloom.training.config import TrainingConfig
    from worldloom.training.data import ReplayBuffer, TrajectoryDataset
    from worldloom.training.trainer import Trainer, train

__all__ = [
    "Callback",
    "CheckpointCallback",
    "LoggingCallback",
    "ReplayBuffer",
    "Trainer",
    "TrainingConfig",
    "TrajectoryDataset",
    "train",
]

_HOMES = {
    "callbacks": ("Callback", "CheckpointCallback", "LoggingCallback"),
    "config": ("TrainingConfig",),
    "data": ("ReplayBuffer", "TrajectoryDataset"),
    "trainer": ("Trainer", "train"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
