"""Sizes of DreamerV3's networks: the one table of presets, and the settings of its public face. No
torch.

The agent's settings (``spec``) and the public ones (:class:`DreamerV3Config`, which keeps the
documented names) are read from the same table, so a preset name means one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from worldloom.core.config_base import WorldModelConfig, not_among, sized, understanding
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, NOT_NEGATIVE, Bounds, checked
from worldloom.core.state_kinds import DynamicsType, LatentType

__all__ = [
    "MLP_LAYERS",
    "PUBLIC_PRESETS",
    "SIZES",
    "DreamerConstants",
    "DreamerSizes",
    "DreamerV3Config",
    "LatentSizes",
    "official_scales",
]

BRANCHES = ("auto", "cnn", "mlp")
FIXED_KERNELS = ((5, 5, 5, 5), (4, 4, 4, 4))
"""The official stages, and the default of 0.1, which is read as the official ones."""
BLOCKS = (8, 4, 2, 1)
"""Numbers of blocks, the official one first, of which sizes that others chose take the first that
fits.
"""
RETURN_HORIZON = 333
"""Steps over which the authors' agent discounts."""
COUNTS = tuple("deter hidden stoch classes units depth blocks space_blocks bins".split())
"""Sizes that are numbers of something, at least one."""
MLP_LAYERS = 3
"""Layers of the vector branches of encoder and decoder; the official number."""


@dataclass(frozen=True, kw_only=True)
class DreamerConstants:
    """What has the same name in the agent's and in the public settings."""

    bins: int = 255
    """Bins of the two-hot reward and value heads."""
    unimix: float = 0.01
    """Share of the uniform distribution in the latents."""


@dataclass(frozen=True, kw_only=True)
class LatentSizes(DreamerConstants):
    """Everything that decides the shapes and the fixed constants of all networks but a decoder; the
    defaults are the official ones at size12m.
    """

    deter: int = 2048
    """Size of the deterministic recurrent state."""
    hidden: int = 256
    """Width of the layers around the recurrent core."""
    stoch: int = 32
    """Number of categorical latents."""
    classes: int = 16
    """Classes of each categorical latent."""
    units: int = 256
    """Width of the MLPs of encoder, heads and, where there is one, decoder."""
    depth: int = 16
    """Channel base of the convolutions."""
    blocks: int = 8
    """Blocks of the recurrent core; deter must be divisible by it."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be >= 1, got {getattr(self, name)}"
            for name in COUNTS
            if hasattr(self, name) and getattr(self, name) < 1
        ]
        if not wrong and self.deter % self.blocks:
            wrong.append(f"deter must be divisible by blocks ({self.blocks}), got {self.deter}")
        if not wrong and self.classes > 256:
            wrong.append(
                f"classes must be <= 256 (replay stores them as bytes), got {self.classes}"
            )
        if not 0.0 <= self.unimix < 1.0:
            wrong.append(f"unimix must be in [0, 1), got {self.unimix}")
        if wrong:
            raise ConfigurationError("; ".join(wrong))

    @property
    def latent(self) -> int:
        """Width of the flattened stochastic state, S x C."""
        return self.stoch * self.classes

    @property
    def feature(self) -> int:
        """Width of what the heads read, deter + S x C."""
        return self.deter + self.latent


@dataclass(frozen=True, kw_only=True)
class DreamerSizes(LatentSizes):
    """The sizes of all networks."""

    space_blocks: int = 8
    """Blocks of the decoder's first image layer; deter and 4 x depth must be divisible by it."""


def _official(width: int) -> dict[str, int]:
    """The official family: units = hidden, deter = 8 hidden, classes = depth = hidden / 16."""
    return {
        "deter": 8 * width,
        "hidden": width,
        "units": width,
        "classes": width // 16,
        "depth": width // 16,
    }


SIZES: Mapping[str, Mapping[str, int]] = {
    "ci": _official(64) | {"deter": 128, "stoch": 16, "classes": 8, "bins": 127},
    "size1m": _official(64),
    "size12m": _official(256),
    "size25m": _official(384),
    "size50m": _official(512),
    "size100m": _official(768),
    "size200m": _official(1024),
    "size400m": _official(1536),
}
"""Preset -> what differs from the defaults of :class:`DreamerSizes`; ``ci`` is ours, the others are
the official ones.
"""
_SIZE_NAMES = tuple(f.name for f in fields(DreamerSizes))
DOCUMENTED = {
    "deter": "deter_dim",
    "hidden": "hidden_dim",
    "stoch": "stoch_discrete",
    "classes": "stoch_classes",
    "depth": "cnn_depth",
}
"""Documented names of sizes that have another name in :class:`DreamerSizes`."""


def official_scales() -> dict[str, float]:
    """Factors of the losses that add up to the official ones."""
    return {"reconstruction": 1.0, "kl": 1.1, "reward": 1.0, "continue": 1.0}


def _public(sizes: Mapping[str, int]) -> dict[str, Any]:
    """A preset under the documented names; without ``units``, which follows ``hidden_dim``.

    The official 1.0 on the prior's and 0.1 on the posterior's divergence are written as scale and
    balance.
    """
    named = {DOCUMENTED.get(name, name): value for name, value in sizes.items() if name != "units"}
    return {**named, "kl_balance": 10 / 11, "loss_scales": official_scales()}


PUBLIC_PRESETS: dict[str, dict[str, Any]] = {
    preset: _public(sizes) for preset, sizes in SIZES.items()
}
"""Preset -> fields of :class:`DreamerV3Config`."""


@understanding
@dataclass(frozen=True)
class DreamerV3Config(WorldModelConfig, DreamerConstants):
    """Settings of the DreamerV3 world model; networks are the official ones at these sizes."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **WorldModelConfig.BOUNDS,
        **dict.fromkeys(
            (
                *("stoch_discrete", "stoch_classes", "deter_dim", "cnn_depth", "mlp_layers"),
                *("units", "blocks", "space_blocks", "bins"),
            ),
            Bounds(1),
        ),
        "unimix": Bounds(0, below=1),
        "kl_free": NOT_NEGATIVE,
        "kl_balance": FRACTION,
        "loss_scales": NOT_NEGATIVE,
        "discount": FRACTION,
        "continue_scale": Bounds(above=0, most=1),
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
    mlp_layers: int = MLP_LAYERS
    """Layers of the MLPs that encode and decode vectors; the official 3."""
    units: int | None = None
    """Width of encoder, decoder and heads; by default hidden_dim, as officially."""
    blocks: int | None = None
    """Blocks of the recurrent core; by default the official 8, or fewer if deter_dim needs it."""
    space_blocks: int | None = None
    """Blocks of the decoder's first image layer; by default as blocks, and divides 4 cnn_depth."""
    discount: float = 1 - 1 / RETURN_HORIZON
    """Factor per step of the values of a trajectory; by default the authors', over 333 steps."""
    continue_scale: float = 1.0
    """Target of the continuation head where an episode goes on; a run's head holds a discount."""

    @classmethod
    def of(cls, sizes: DreamerSizes, **others: Any) -> DreamerV3Config:
        """The settings of networks of these sizes; ``others`` are fields that no size decides."""
        named = {DOCUMENTED.get(name, name): getattr(sizes, name) for name in _SIZE_NAMES}
        return cls(**named, **others)

    def sizes(self) -> DreamerSizes:
        """Sizes of the networks."""
        named = {name: getattr(self, DOCUMENTED.get(name, name)) for name in _SIZE_NAMES}
        fits = [b for b in BLOCKS if self.deter_dim % b == 0]
        fills = {
            "units": self.hidden_dim,
            "blocks": fits[0],
            "space_blocks": next(b for b in fits if (4 * self.cnn_depth) % b == 0),
        }
        return DreamerSizes(**{n: fills[n] if v is None else v for n, v in named.items()})

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> DreamerV3Config:
        """The preset of a size: ci, size12m ... size400m."""
        return sized(cls, PUBLIC_PRESETS, size, kwargs)  # type: ignore[no-any-return]

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
