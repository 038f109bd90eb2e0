"""What DreamerV3 is before any network exists: settings, presets, and what the system must know to
run it. No torch.

Sizes and constants are those of the official code; where the papers differ, the code's value is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from worldloom.algorithms.dreamerv3.config import COUNTS, SIZES, DreamerSizes, LatentSizes
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.protocol import AgentSpec, SamplingSpec
from worldloom.core.specs import ArraySpec, EnvSpec

__all__ = [
    "ARCHITECTURE",
    "DEFAULT_PRESET",
    "ENV_DEFAULTS",
    "LATENT_DETER",
    "LATENT_STOCH",
    "PRESETS",
    "RUN_LENGTHS",
    "DreamerAgentConfig",
    "DreamerV3AgentConfig",
    "make_spec",
    "presets_of",
    "product_shapes",
]

LATENT_DETER = "latent/deter"
LATENT_STOCH = "latent/stoch"
"""Extra columns of a row: the posterior after seeing it, deter as bfloat16 bits and one byte per
categorical.
"""


PRECISIONS = ("default", "auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class DreamerAgentConfig(LatentSizes):
    """Settings of an agent that learns in the imagination of a :class:`LatentModel`, whatever its
    representation is learnt from; the defaults are the official ones of DreamerV3 at size12m.
    """

    BOUNDS = MappingProxyType(
        {
            **dict.fromkeys(COUNTS, Bounds(1)),
            **dict.fromkeys(
                ("batch_size", "imagine_length", "actor_layers", "critic_layers", "horizon"),
                Bounds(1),
            ),
            "batch_length": Bounds(2),
            **dict.fromkeys(("train_ratio", "lr", "pmin", "return_limit"), POSITIVE),
            **dict.fromkeys(
                (
                    "entropy_scale",
                    "slow_scale",
                    "agc",
                    "weight_decay",
                    "free_nats",
                    "warmup",
                    "eps",
                ),
                NOT_NEGATIVE,
            ),
            **dict.fromkeys(
                (
                    *("scale_rew", "scale_con", "scale_dyn", "scale_rep"),
                    *("scale_policy", "scale_value", "scale_repval"),
                ),
                NOT_NEGATIVE,
            ),
            **dict.fromkeys(
                (
                    *("lam", "slow_rate", "return_rate", "return_low", "return_high"),
                    "replay_context",
                ),
                FRACTION,
            ),
            **dict.fromkeys(("unimix", "beta1", "beta2"), Bounds(0, below=1)),
        }
    )
    """Which numbers the fields may hold."""
    name: str = "dreamerv3:size12m"
    """Algorithm and preset."""
    actor_layers: int = 3
    """Dense layers of the actor."""
    critic_layers: int = 3
    """Dense layers of the critic."""
    batch_size: int = 16
    """Windows per batch."""
    batch_length: int = 64
    """Trained steps per window."""
    replay_context: int = 1
    """1: windows start from latents that replay stores and updates refresh; 0: from zeros."""
    burn_in: bool = False
    """Start where a row has no latent from what the model makes of it; --replay.load sets it."""
    train_ratio: float = 32.0
    """Trained steps per agent step."""
    horizon: int = 333
    """Discount horizon; the discount is 1 - 1/horizon."""
    learn_discount: bool = True
    """Train the continuation head towards continuation times discount."""
    imagine_length: int = 15
    """Imagined steps from each trained state."""
    lam: float = 0.95
    """Weight of longer returns in the lambda-return."""
    entropy_scale: float = 3e-4
    """Factor of the actor's entropy bonus."""
    slow_scale: float = 1.0
    """Factor of the critic's regulariser towards its slow copy."""
    slow_rate: float = 0.02
    """Share of the critic that enters its slow copy after each update."""
    slow_target: bool = False
    """Compute imagined returns from the slow critic."""
    return_rate: float = 0.01
    """Rate of the return normaliser's averages."""
    return_limit: float = 1.0
    """Smallest scale that the return normaliser divides by."""
    return_low: float = 0.05
    """Lower percentile of returns."""
    return_high: float = 0.95
    """Upper percentile of returns."""
    free_nats: float = 1.0
    """KL per step below which the latents are not penalised."""
    scale_rew: float = 1.0
    """Loss scale of the reward head."""
    scale_con: float = 1.0
    """Loss scale of the continuation head."""
    scale_dyn: float = 1.0
    """Loss scale of the KL that trains the prior."""
    scale_rep: float = 0.1
    """Loss scale of the KL that trains the posterior."""
    scale_policy: float = 1.0
    """Loss scale of the actor."""
    scale_value: float = 1.0
    """Loss scale of the critic in imagination."""
    scale_repval: float = 0.3
    """Loss scale of the critic on replayed steps."""
    lr: float = 4e-5
    """Learning rate."""
    warmup: int = 1000
    """Updates over which the learning rate rises from 0."""
    agc: float = 0.3
    """Adaptive gradient clipping: largest ratio of gradient norm to parameter norm, per tensor."""
    pmin: float = 1e-3
    """Smallest parameter norm that clipping assumes."""
    beta1: float = 0.9
    """Decay of the optimizer's momentum."""
    beta2: float = 0.999
    """Decay of the optimizer's mean square."""
    eps: float = 1e-20
    """Added to the optimizer's root mean square."""
    weight_decay: float = 0.0
    """Decoupled weight decay of kernels."""
    precision: str = "default"
    """Of products: float32, bfloat16, default (bfloat16 on CUDA, else float32), auto (faster)."""

    def __post_init__(self) -> None:
        wrong = normalize(self, self.BOUNDS, prefix="agent.")
        if not wrong and self.precision not in PRECISIONS:
            wrong.append(
                f"agent.precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if not wrong and self.return_low > self.return_high:
            wrong.append(
                f"agent.return_low must be <= return_high ({self.return_high}), got "
                f"{self.return_low}"
            )
        if wrong:
            raise ConfigurationError(
                "; ".join(wrong), self.name if isinstance(self.name, str) else None
            )
        super().__post_init__()

    def loss_scale(self, loss: str) -> float:
        """Factor of a loss by name; parts of one loss (``obs/KEY``) share it."""
        scale: float = getattr(self, "scale_" + loss.partition("/")[0])
        return scale


@dataclass(frozen=True, kw_only=True)
class DreamerV3AgentConfig(DreamerAgentConfig, DreamerSizes):
    """Settings of one DreamerV3 agent."""

    BOUNDS = MappingProxyType(
        {
            **DreamerAgentConfig.BOUNDS,
            "scale_obs": NOT_NEGATIVE,
            "report_length": Bounds(2),
        }
    )
    """Which numbers the fields may hold."""
    scale_obs: float = 1.0
    """Loss scale of the reconstruction of each observation key."""
    report_length: int = 32
    """Steps of the open-loop prediction video, the first half of them with observations."""


DEFAULT_PRESET = "size12m"

ARCHITECTURE = frozenset({*COUNTS, "actor_layers", "critic_layers", "replay_context"})
"""Settings that decide the shape of the weights or of the stored rows; a resumed run keeps them."""


_CI = {
    "batch_size": 8,
    "batch_length": 32,
    "train_ratio": 256.0,
    "lr": 4e-4,
    "warmup": 100,
}
"""Of ``ci`` beside its sizes: trains a step in tens of milliseconds, and solves classic control
within minutes on a CPU.
"""


Config = TypeVar("Config", bound=DreamerAgentConfig)


def presets_of(algorithm: str, kind: type[Config]) -> dict[str, Callable[[], Config]]:
    """Preset name -> function that gives its config, for every size of the table.

    Args:
        algorithm: First half of the configs' names.
        kind: Of the configs.
    """

    def preset(size: str) -> Callable[[], Config]:
        def make() -> Config:
            """The config of this size."""
            own: dict[str, Any] = {**SIZES[size], **(_CI if size == "ci" else {})}
            return kind(name=f"{algorithm}:{size}", **own)

        return make

    return {size: preset(size) for size in SIZES}


PRESETS: Mapping[str, Callable[[], DreamerV3AgentConfig]] = presets_of(
    "dreamerv3", DreamerV3AgentConfig
)
"""Preset name -> config."""

METRIC_KEYS = {"val": "value_mean", "loss/dyn": "model_kl_nats"}
"""Names in the system's table of metrics."""

ENV_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "atari": {
        "action_repeat": 4,
        "time_limit": 27_000,
        "image_size": 96,
        "grayscale": True,
        "frame_stack": 1,
        "sticky": 0.25,
        "noops": 30,
        "full_actions": True,
    },
    "dmc": {"action_repeat": 1, "image_size": 64, "grayscale": False, "frame_stack": 1},
}
"""Env settings per suite, as the official code runs them; 27,000 decisions are its 108,000 Atari
frames.
"""

RUN_LENGTHS: Mapping[str, Mapping[str, int]] = {
    "atari": {"env_steps": 204_000_000, "eval_every": 2_000_000},
    "dmc": {"env_steps": 1_100_000, "eval_every": 50_000},
}
"""How long the authors' runs are (github.com/danijar/dreamerv3, ``configs.yaml``); evaluations are
ours.
"""


def product_shapes(config: DreamerAgentConfig) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of the layers that take most of an update: heads and prior over all
    positions, the recurrent core over a batch.
    """
    rows = config.batch_size * config.batch_length
    block = config.deter // config.blocks
    return [
        (rows, config.deter, config.hidden),
        (rows, config.units, config.units),
        (rows, block, 3 * block),
        (config.batch_size, config.deter, config.hidden),
    ]


def make_spec(config: DreamerAgentConfig, env: EnvSpec) -> AgentSpec:
    """What the system must know: windows, ratio, prefill, and the latent columns that replay
    stores.

    Training starts once as many windows can be drawn as a batch has trained steps; the untrained
    policy acts until then.
    """
    if not env.obs or not env.action:
        raise ConfigurationError(
            f"env {env.name!r} needs at least one observation and one action key for "
            f"{config.name.partition(':')[0]}",
            config.name,
        )
    sampling = SamplingSpec(
        batch_size=config.batch_size,
        length=config.batch_length,
        context=config.replay_context,
        cross_episodes=True,
        online=True,
    )
    latents = {
        LATENT_DETER: ArraySpec((config.deter,), "uint16"),
        LATENT_STOCH: ArraySpec((config.stoch,), "uint8"),
    }
    # can_compile stays False: torch 2.13 gave the compiled update wrong shapes
    return AgentSpec(
        name=config.name,
        sampling=sampling,
        train_ratio=config.train_ratio,
        prefill_agent_steps=sampling.trained_positions + sampling.window_rows - 1,
        random_prefill=False,
        extras=latents if config.replay_context else {},
        writes_back=bool(config.replay_context),
        metric_keys=METRIC_KEYS,
    )
