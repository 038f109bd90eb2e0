"""Sizes of TD-MPC2's networks: the one table of presets, and the settings of its public face. No
torch.

The agent's settings (``spec``) and the public ones (:class:`TDMPC2Config`, which keeps the
documented names) are read from the same table, so a preset name means one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from worldloom.core.config_base import WorldModelConfig, sized, understanding
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Bounds
from worldloom.core.specs import ArraySpec
from worldloom.core.state_kinds import LatentType

__all__ = [
    "CI_PLANNER",
    "PUBLIC_PRESETS",
    "SIZES",
    "Architecture",
    "TDMPC2Config",
    "TDMPC2Constants",
    "TDMPC2Planning",
    "TDMPC2Sizes",
]

SIZES: Mapping[str, Mapping[str, int]] = {
    "ci": {"encoder_dim": 96, "mlp_dim": 96, "latent_dim": 64, "encoder_layers": 2, "num_q": 2},
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
"""Preset -> fields of :class:`TDMPC2Sizes`: the authors' model sizes (TD-MPC2,
arXiv:2310.16828v2, and their code); ``ci`` is ours.
"""
CI_PLANNER = {"num_samples": 96, "num_elites": 12}
"""What ``ci`` plans with."""
DOCUMENTED = {
    "encoder_layers": "num_hidden_layers",
    "mlp_dim": "hidden_dim",
    "num_q": "num_q_networks",
}
"""Documented names of sizes that have another name in :class:`TDMPC2Sizes`."""
PUBLIC_PRESETS: dict[str, dict[str, Any]] = {
    preset: {DOCUMENTED.get(name, name): value for name, value in sizes.items()}
    | (CI_PLANNER if preset == "ci" else {})
    for preset, sizes in SIZES.items()
}
"""Preset -> fields of :class:`TDMPC2Config`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDMPC2Constants:
    """What has the same name in the agent's and in the public settings."""

    num_channels: int = 32
    """Channels of the convolutions of image observations."""
    num_bins: int = 101
    """Bins of reward and critics."""
    bin_low: float = -10.0
    """Lowest bin, in symlog space."""
    bin_high: float = 10.0
    """Highest bin, in symlog space."""
    simnorm_dim: int = 8
    """Group size of the simplicial normalization of the latent."""
    dropout: float = 0.01
    """Dropout rate in the first layer of each critic, while training."""
    log_std_min: float = -10.0
    """Lowest log standard deviation of the policy prior."""
    log_std_max: float = 2.0
    """Highest log standard deviation of the policy prior."""


@dataclass(frozen=True, kw_only=True)
class TDMPC2Planning:
    """How far and how wide the planner looks, in the agent's and in the public settings."""

    horizon: int = 3
    """Decisions that a window trains, and that planning looks ahead."""
    num_samples: int = 512
    """Action sequences per planner iteration, those of the policy prior included."""
    num_elites: int = 64
    """Best sequences that form the next distribution."""
    temperature: float = 0.5
    """Sharpness of the weights of the elites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDMPC2Sizes(TDMPC2Constants):
    """Everything that decides the shapes and the fixed constants of the networks; the defaults are
    the authors' at 5m.
    """

    latent_dim: int = 512
    """Size of the latent state, a multiple of simnorm_dim."""
    encoder_dim: int = 256
    """Hidden size of the encoder of vector observations."""
    encoder_layers: int = 2
    """Layers of the encoder of vector observations, the output layer included."""
    mlp_dim: int = 512
    """Hidden size of dynamics, reward, termination, policy and critics."""
    num_q: int = 5
    """Critics in the ensemble."""


_SIZE_NAMES = tuple(f.name for f in fields(TDMPC2Sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture(TDMPC2Sizes):
    """What the parameters of a model look like: the sizes, and what follows from env and tasks.

    Args:
        obs: Observation keys. All vectors are concatenated in this order and share one encoder;
            each image has its own.
        action_dim: Number of continuous action components (A).
        is_episodic: Is there a termination head?
        num_tasks, task_dim: Tasks and size of their embedding; one task has none.
    """

    obs: Mapping[str, ArraySpec]
    action_dim: int
    is_episodic: bool = False
    num_tasks: int = 1
    task_dim: int = 0

    @classmethod
    def of(cls, sizes: TDMPC2Sizes, **others: Any) -> Architecture:
        """The architecture of some sizes; ``others`` are the fields of its own."""
        return cls(**{name: getattr(sizes, name) for name in _SIZE_NAMES}, **others)

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


@understanding
@dataclass(frozen=True)
class TDMPC2Config(WorldModelConfig, TDMPC2Constants, TDMPC2Planning):
    """Settings of the TD-MPC2 world model; networks are the official ones at these sizes."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **WorldModelConfig.BOUNDS,
        **dict.fromkeys(
            (
                "simnorm_dim",
                "num_hidden_layers",
                "num_tasks",
                "horizon",
                "num_samples",
                "num_elites",
            ),
            Bounds(1),
        ),
        **dict.fromkeys(("encoder_dim", "task_dim"), NOT_NEGATIVE),
        **dict.fromkeys(("num_q_networks", "num_bins"), Bounds(2)),
        "num_channels": Bounds(1),
        "dropout": Bounds(0, below=1),
        "temperature": POSITIVE,
        "momentum": FRACTION,
        "gamma": Bounds(above=0, most=1),
    }
    model_type: str = "tdmpc2"
    """Which model."""
    obs_shape: tuple[int, ...] = (39,)
    """Shape of one observation."""
    latent_type: str = LatentType.SIMNORM
    """Groups on simplices."""
    latent_dim: int = 512
    """Size of the latent state, a multiple of simnorm_dim."""
    num_hidden_layers: int = 2
    """Layers of the encoder of vectors, its output layer included."""
    encoder_dim: int | None = None
    """Width of the encoder of vectors; hidden_dim by default."""
    task_dim: int = 96
    """Size of a task's embedding; read with several tasks only."""
    num_tasks: int = 1
    """Tasks that share the model."""
    num_q_networks: int = 5
    """Critics."""
    momentum: float = 0.1
    """Share of the previous plan's mean that stays in the mean with which the next plan starts."""
    gamma: float = 0.99
    """Discount per step."""
    use_decoder: bool = False
    """Train a decoder beside the model, which the model does not feel: ``decode`` then has
    ``obs``.
    """
    episodic: bool = False
    """Learn when episodes terminate: ``decode`` then has ``continue``."""

    @classmethod
    def of(cls, sizes: TDMPC2Sizes, **others: Any) -> TDMPC2Config:
        """The settings of networks of these sizes; ``others`` are fields that no size decides."""
        named = {DOCUMENTED.get(name, name): getattr(sizes, name) for name in _SIZE_NAMES}
        return cls(**named, **others)

    def sizes(self) -> TDMPC2Sizes:
        """Sizes of the networks."""
        named = {name: getattr(self, DOCUMENTED.get(name, name)) for name in _SIZE_NAMES}
        return TDMPC2Sizes(**named)

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> TDMPC2Config:
        """The preset of a size: ci, 1m, 5m ... 317m."""
        return sized(cls, PUBLIC_PRESETS, size, kwargs)  # type: ignore[no-any-return]

    @classmethod
    def synonyms(cls) -> dict[str, str]:
        """See :meth:`WorldModelConfig.synonyms`."""
        return {
            "num_q": "num_q_networks",
            "mlp_layers": "num_hidden_layers",
            "num_layers": "num_hidden_layers",
            "discount": "gamma",
        }

    def _derive(self) -> None:
        self._set(encoder_dim=self.encoder_dim or self.hidden_dim)

    def _checks(self) -> list[tuple[bool, str]]:
        group = self.simnorm_dim
        return [
            *super()._checks(),
            (
                self.latent_dim % group != 0,
                f"latent_dim must be a multiple of simnorm_dim ({group}), got {self.latent_dim}",
            ),
            (
                self.num_elites > self.num_samples,
                f"num_elites must be <= num_samples ({self.num_samples}), got {self.num_elites}",
            ),
            (
                self.num_tasks > 1 and self.task_dim < 1,
                f"task_dim must be >= 1 with several tasks, got {self.task_dim}",
            ),
        ]
