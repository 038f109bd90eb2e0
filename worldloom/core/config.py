"""Settings of the public world models. No torch.

Unlike agents' settings these keep the documented names; each model's public face translates them
into the sizes of the networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from worldloom.core.config_base import (
    CONFIG_CLASSES,
    WorldModelConfig,
    not_among,
    sized,
    understanding,
)
from worldloom.core.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Bounds, checked
from worldloom.core.model_sizes import DREAMER_SIZES, MLP_SIZES, TDMPC2_SIZES, official_scales
from worldloom.core.state_kinds import DynamicsType, LatentType

__all__ = ["DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"]

BRANCHES = ("auto", "cnn", "mlp")
FIXED_KERNELS = ((5, 5, 5, 5), (4, 4, 4, 4))
"""The official stages, and the default of 0.1, which is read as the official ones."""


@understanding
@dataclass(frozen=True)
class DreamerV3Config(WorldModelConfig):
    """Settings of the DreamerV3 world model; networks are the official ones at these sizes."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **WorldModelConfig.BOUNDS,
        **dict.fromkeys(
            ("stoch_discrete", "stoch_classes", "deter_dim", "cnn_depth", "mlp_layers"), Bounds(1)
        ),
        "kl_free": NOT_NEGATIVE,
        "kl_balance": FRACTION,
        "loss_scales": NOT_NEGATIVE,
    }
    model_type: str = "dreamer"
    """Which model."""
    latent_type: str = LatentType.CATEGORICAL
    """Categorical."""
    dynamics_type: str = DynamicsType.RSSM
    """Recurrent state-space model."""
    deter_dim: int = 2048
    """Size of the recurrent state; a multiple of 8 keeps all eight blocks of the core."""
    hidden_dim: int = 256
    """Width of every MLP."""
    stoch_discrete: int = 32
    """Number of categorical latents."""
    stoch_classes: int = 32
    """Classes of each categorical latent."""
    encoder_type: str = "auto"
    """cnn for images, mlp for vectors; auto looks at obs_shape."""
    decoder_type: str = "auto"
    """As encoder_type, and equal to it."""
    cnn_depth: int = 48
    """Channel base of the convolutions."""
    cnn_kernels: tuple[int, ...] = (4, 4, 4, 4)
    """Four stages, whose kernels are the official 5x5; other values are refused."""
    kl_free: float = 1.0
    """Divergence per step, in nats, that is not penalised."""
    kl_balance: float = 0.8
    """Share of the divergence that trains the prior; the rest trains the posterior."""
    loss_scales: dict[str, float] = field(
        default_factory=lambda: {"reconstruction": 1.0, "kl": 0.1, "reward": 1.0, "continue": 1.0}
    )
    """Factor of each loss; the presets hold the official ones."""
    use_symlog: bool = True
    """Vectors and rewards are squashed by symlog inside; the architecture has no other way."""
    mlp_layers: int = 3
    """Layers of the MLPs that encode and decode vectors; the official 3."""

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> DreamerV3Config:
        """The preset of a size: ci, size12m ... size400m."""
        return sized(cls, DREAMER_SIZES, size, kwargs)  # type: ignore[no-any-return]

    @classmethod
    def synonyms(cls) -> dict[str, str]:
        """See :meth:`WorldModelConfig.synonyms`."""
        return {
            "num_categories": "stoch_classes",
            "num_classes": "stoch_classes",
            "num_categoricals": "stoch_discrete",
            "num_layers": "mlp_layers",
        }

    @classmethod
    def merged(cls, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`WorldModelConfig.merged`; ``stoch_dim`` without ``stoch_discrete`` says how
        many categoricals there are.

        Documents of 0.1 write it in two ways: as the whole stochastic size (1024 with 32 classes:
        32 categoricals), and as the number of categoricals (32 with 32 classes). A multiple of the
        classes above them is read as the first, else the second.
        """
        new = super().merged({}, changes)
        result = {**fields, **new}
        total = new.get("stoch_dim")
        result.pop("stoch_dim", None)
        if total is not None and "stoch_discrete" not in new:
            total = checked("stoch_dim", total, int, Bounds(1))
            classes = checked(
                "stoch_classes", result.get("stoch_classes", cls.stoch_classes), int, Bounds(1)
            )
            is_whole = total > classes and total % classes == 0
            result["stoch_discrete"] = total // classes if is_whole else total
        return result

    def _derive(self) -> None:
        kind = "cnn" if self.is_image else "mlp"
        encoder = kind if self.encoder_type == "auto" else self.encoder_type
        decoder = encoder if self.decoder_type == "auto" else self.decoder_type
        self._set(
            encoder_type=encoder,
            decoder_type=decoder,
            stoch_dim=self.stoch_discrete * self.stoch_classes,
        )
        self._set(latent_dim=self.deter_dim + self.stoch_dim)

    def _checks(self) -> list[tuple[bool, str]]:
        scales = set(self.loss_scales) ^ set(official_scales())
        return [
            *super()._checks(),
            not_among(self, "encoder_type", BRANCHES),
            not_among(self, "decoder_type", BRANCHES),
            *(
                (getattr(self, n) == "cnn" and not self.is_image, self._cnn_text(n))
                for n in ("encoder_type", "decoder_type")
            ),
            (
                self.encoder_type != self.decoder_type,
                f"decoder_type must equal encoder_type, got {self.decoder_type!r}",
            ),
            (
                self.cnn_kernels not in FIXED_KERNELS,
                f"cnn_kernels must be four stages of 5, got {self.cnn_kernels}",
            ),
            (
                bool(scales),
                f"loss_scales must have exactly {sorted(official_scales())}, got "
                f"{sorted(self.loss_scales)}",
            ),
            (
                not self.use_symlog,
                "use_symlog must be True, got False; scale observations yourself if "
                "symlog harms them",
            ),
        ]

    def _cnn_text(self, name: str) -> str:
        return (
            f"{name} 'cnn' needs an image of three axes, got obs_shape {self.obs_shape}; "
            "use 'mlp' or 'auto'"
        )


@understanding
@dataclass(frozen=True)
class TDMPC2Config(WorldModelConfig):
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
        "num_q_networks": Bounds(2),
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
    simnorm_dim: int = 8
    """Group size of the simplicial normalisation."""
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
    horizon: int = 3
    """Steps that a loss unrolls, and that planning looks ahead."""
    num_samples: int = 512
    """Action sequences per planner iteration."""
    num_elites: int = 64
    """Best sequences, which form the next distribution."""
    temperature: float = 0.5
    """Sharpness of the weights of the elites."""
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
    def from_size(cls, size: str, **kwargs: Any) -> TDMPC2Config:
        """The preset of a size: ci, 1m, 5m ... 317m."""
        return sized(cls, TDMPC2_SIZES, size, kwargs)  # type: ignore[no-any-return]

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
        return sized(cls, MLP_SIZES, size, kwargs)  # type: ignore[no-any-return]


CONFIG_CLASSES.update(
    base=WorldModelConfig, dreamer=DreamerV3Config, tdmpc2=TDMPC2Config, mlp=MLPConfig
)
CONFIG_CLASSES.update(dreamerv3=DreamerV3Config, tdmpc=TDMPC2Config)  # as some files say
