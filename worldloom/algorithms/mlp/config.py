"""Settings of the plain latent world model. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from worldloom.core.config_base import WorldModelConfig, sized, understanding
from worldloom.core.fields import NOT_NEGATIVE, Bounds

__all__ = ["PUBLIC_PRESETS", "MLPConfig"]

PUBLIC_PRESETS: dict[str, dict[str, Any]] = {
    "ci": {"latent_dim": 16, "hidden_dim": 32},
    "small": {"latent_dim": 128, "hidden_dim": 256},
    "base": {"latent_dim": 128, "hidden_dim": 256, "ensemble_size": 5},
    "medium": {"latent_dim": 256, "hidden_dim": 512},
    "large": {"latent_dim": 512, "hidden_dim": 1024},
}


@understanding
@dataclass(frozen=True)
class MLPConfig(WorldModelConfig):
    """Settings of the plain latent world model, and of ensembles of it."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **WorldModelConfig.BOUNDS,
        **dict.fromkeys(("ensemble_size", "horizon"), Bounds(1)),
        **dict.fromkeys(
            ("reconstruction_scale", "dynamics_scale", "reward_scale", "continue_scale"),
            NOT_NEGATIVE,
        ),
    }
    model_type: str = "mlp"
    """Which model."""
    obs_shape: tuple[int, ...] = (7,)
    """Shape of one observation; images are flattened."""
    action_dim: int = 3
    """Components of an action."""
    latent_dim: int = 128
    """Size of the latent state."""
    hidden_dim: int = 256
    """Width of hidden layers."""
    learning_rate: float = 1e-3
    """What Trainer uses when TrainingConfig leaves its own learning rate at the default."""
    ensemble_size: int = 1
    """Independent models; their mean is the prediction, their disagreement the uncertainty."""
    predict_variance: bool = False
    """Let the dynamics predict a variance beside the mean."""
    horizon: int = 1
    """Steps that the dynamics loss unrolls."""
    reconstruction_scale: float = 1.0
    """Weight of the reconstruction loss."""
    dynamics_scale: float = 1.0
    """Weight of the latent prediction loss."""
    reward_scale: float = 1.0
    """Weight of the reward loss."""
    continue_scale: float = 1.0
    """Weight of the termination loss."""

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> MLPConfig:
        """The preset of a size: ci, small, medium, large."""
        return sized(cls, PUBLIC_PRESETS, size, kwargs)  # type: ignore[no-any-return]
