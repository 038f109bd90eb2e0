"""Every size of a TD-MPC2 world model. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec

__all__ = ["SIZES", "Architecture"]

SIZES: dict[str, dict[str, int]] = {
    "1m": {"encoder_dim": 256, "mlp_dim": 384, "latent_dim": 128, "encoder_layers": 2, "num_q": 2},
    "5m": {"encoder_dim": 256, "mlp_dim": 512, "latent_dim": 512, "encoder_layers": 2, "num_q": 5},
    "19m": {
        "encoder_dim": 1024,
        "mlp_dim": 1024,
        "latent_dim": 768,
        "encoder_layers": 3,
        "num_q": 5,
    },
    "48m": {
        "encoder_dim": 1792,
        "mlp_dim": 1792,
        "latent_dim": 768,
        "encoder_layers": 4,
        "num_q": 5,
    },
    "317m": {
        "encoder_dim": 4096,
        "mlp_dim": 4096,
        "latent_dim": 1376,
        "encoder_layers": 5,
        "num_q": 8,
    },
}
"""The authors' model sizes (TD-MPC2, arXiv:2310.16828v2, and their code)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the parameters of a model look like.

    Args:
        obs: Observation keys. All vectors are concatenated in this order and share one encoder;
            each image has its own.
        action_dim: Number of continuous action components (A).
        latent_dim: Size of the latent state (L), a multiple of ``simnorm_dim``.
        encoder_dim, encoder_layers: Hidden size and number of layers of the vector encoder, its
            output layer included.
        mlp_dim: Hidden size of every other network (M).
        num_channels: Channels of each convolution of an image encoder.
        num_q: Critics in the ensemble.
        num_bins, bin_low, bin_high: Bins of reward and critics, in symlog space.
        simnorm_dim: Group size of the simplicial normalization.
        dropout: Rate after the first product of each critic, while training.
        log_std_min, log_std_max: Range of the policy's log standard deviation.
        is_episodic: Is there a termination head?
        num_tasks, task_dim: Tasks and size of their embedding; one task has none.
    """

    obs: Mapping[str, ArraySpec]
    action_dim: int
    latent_dim: int = 512
    encoder_dim: int = 256
    encoder_layers: int = 2
    mlp_dim: int = 512
    num_channels: int = 32
    num_q: int = 5
    num_bins: int = 101
    bin_low: float = -10.0
    bin_high: float = 10.0
    simnorm_dim: int = 8
    dropout: float = 0.01
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    is_episodic: bool = False
    num_tasks: int = 1
    task_dim: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not self.obs:
            problems.append("obs must have at least one key")
        if self.latent_dim % self.simnorm_dim:
            problems.append(
                f"latent_dim must be a multiple of simnorm_dim ({self.simnorm_dim}), "
                f"got {self.latent_dim}"
            )
        if self.num_q < 2:
            problems.append(
                f"num_q must be >= 2, because targets use a pair of critics, got {self.num_q}"
            )
        if (self.num_tasks > 1) != (self.task_dim > 0):
            problems.append(
                "task_dim must be > 0 exactly when num_tasks > 1, got "
                f"{self.task_dim} for {self.num_tasks}"
            )
        if self.is_episodic and self.num_tasks > 1:
            problems.append(
                "a termination head is for one task only; set episodic to off or train one task"
            )
        for key, spec in self.obs.items():
            if spec.is_image and min(spec.shape[1], max(spec.shape[0], spec.shape[2])) < 32:
                problems.append(
                    f"image {key!r} must be at least 32 pixels wide and high, got {spec.shape}"
                )
        if problems:
            raise ConfigurationError("; ".join(problems))

    @property
    def vector_keys(self) -> tuple[str, ...]:
        """Observation keys that are not images."""
        return tuple(key for key, spec in self.obs.items() if not spec.is_image)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Observation keys that are images."""
        return tuple(key for key, spec in self.obs.items() if spec.is_image)

    @property
    def vector_dim(self) -> int:
        """Size of all vectors together."""
        return sum(self.obs[key].size for key in self.vector_keys)

    @property
    def joint_dim(self) -> int:
        """Size of what dynamics, reward and critics read: latent, task embedding, action."""
        return self.latent_dim + self.task_dim + self.action_dim
