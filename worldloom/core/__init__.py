"""What every package shares. Names load on first use: most of these modules need no torch."""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

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
    "algorithms.configs": ("DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"),
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
    "algorithms.model_registry": ("AutoConfig", "AutoWorldModel", "WorldModelRegistry"),
    "core.state": ("LatentState",),
    "core.state_kinds": ("DynamicsType", "LatentType"),
    "core.trajectory": ("Trajectory",),
    "core.world_model": ("WorldModel",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
