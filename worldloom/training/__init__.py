"""Offline training of world models: replay, trainer, callbacks, checkpoints; names load on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

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
    "training.callbacks": ("Callback", "CheckpointCallback", "LoggingCallback"),
    "training.config": ("TrainingConfig",),
    "training.data": ("ReplayBuffer", "TrajectoryDataset"),
    "training.trainer": ("Trainer", "train"),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
