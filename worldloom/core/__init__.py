"""The words everybody shares. Names load on first use: most of these modules need no torch."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "AutoConfig",
    "AutoWorldModel",
    "BufferError",
    "CategoricalLatentSpace",
    "CheckpointError",
    "ConfigurationError",
    "DreamerV3Config",
    "DynamicsType",
    "GaussianLatentSpace",
    "LatentSpace",
    "LatentState",
    "LatentType",
    "MLPConfig",
    "ModelNotFoundError",
    "ShapeMismatchError",
    "SimNormLatentSpace",
    "StateError",
    "TDMPC2Config",
    "TrainingError",
    "Trajectory",
    "WorldLoomError",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelRegistry",
]

_HOMES = {
    "core.config": ("DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"),
    "core.exceptions": (
        "BufferError",
        "CheckpointError",
        "ConfigurationError",
        "ModelNotFoundError",
        "ShapeMismatchError",
        "StateError",
        "TrainingError",
        "WorldLoomError",
    ),
    "core.latent_space": (
        "CategoricalLatentSpace",
        "GaussianLatentSpace",
        "LatentSpace",
        "SimNormLatentSpace",
    ),
    "core.registry": ("AutoConfig", "AutoWorldModel", "WorldModelRegistry"),
    "core.state": ("LatentState",),
    "core.state_kinds": ("DynamicsType", "LatentType"),
    "core.trajectory": ("Trajectory",),
    "core.world_model": ("WorldModel",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"worldloom.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
