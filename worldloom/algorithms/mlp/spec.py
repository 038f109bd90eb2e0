"""Settings of the agent that trains the plain latent model, and what the system must know of it. No
torch.

The weights of losses, learning rates, weight decay and limit of the gradient are the guide's; sizes
are those of the public model's presets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from worldloom.algorithms.mlp.config import PUBLIC_PRESETS
from worldloom.core.discounts import derived_discount
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.protocol import AgentSpec, SamplingSpec
from worldloom.core.specs import EnvSpec

__all__ = [
    "ARCHITECTURE",
    "DEFAULT_PRESET",
    "ENV_DEFAULTS",
    "OBS_LEAST",
    "PRESETS",
    "REWARD_LEAST",
    "Acting",
    "MLPAgentConfig",
    "make_spec",
    "resolve",
]

DEFAULT_PRESET = "small"
Acting = Literal["actor-critic", "cem", "random-shooting", "mcts"]
OBS_LEAST = 1e-3
REWARD_LEAST = 1e-3
"""Smallest deviations in whose units observations and rewards are read and predicted."""
MOST_CHOICES = 256
"""Joint discrete actions that a search tree may branch into."""

ENV_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "atari": {"action_repeat": 4, "frame_stack": 4, "image_size": 64, "grayscale": True},
    "dmc": {"action_repeat": 2, "frame_stack": 3, "image_size": 64, "grayscale": False},
    "gym": {"action_repeat": 1, "frame_stack": 3, "image_size": 64, "grayscale": False},
}
"""Env settings per suite; frames are stacked because the model remembers nothing."""

ARCHITECTURE = frozenset(
    {
        *("latent_dim", "hidden_dim", "ensemble_size", "conv_depth"),
        *("policy_dim", "policy_layers", "bins"),
    }
)
"""Settings that decide the shape of the weights; a resumed run keeps them."""

METRIC_KEYS = {"value": "value_mean", "return_scale": "return_scale"}
"""Names in the system's table of metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPAgentConfig:
    """Settings of an agent with the plain latent model."""

    name: str = "mlp:small"
    """Algorithm and preset."""
    acting: Acting = "actor-critic"
    """What chooses actions: actor-critic, cem, random-shooting, or mcts (discrete actions)."""
    uncertainty_bonus: float = 0.0
    """Reward per unit of the members' disagreement, in imagination and planning; > 0 explores."""

    latent_dim: int = 128
    """Size of the latent state."""
    hidden_dim: int = 256
    """Width of the model's hidden layers."""
    ensemble_size: int = 3
    """Members: dynamics, reward and termination are learned this many times."""
    conv_depth: int = 16
    """Channels per unit of the convolutions of image observations."""
    policy_dim: int = 128
    """Width of actor and critic."""
    policy_layers: int = 2
    """Hidden layers of actor and critic."""
    bins: int = 255
    """Bins of the critic, symexp-spaced up to 1.2e6."""

    batch_size: int = 32
    """Windows per update."""
    batch_length: int = 4
    """Transitions of a window, over which the dynamics are unrolled."""
    updates_per_decision: float = 0.75
    """Updates per agent step, over the whole run."""
    prefill_agent_steps: int = 500
    """Random agent steps before the first update."""
    pretrain_updates: int = 100
    """Updates in one burst after the prefill."""

    learning_rate: float = 1e-3
    """Step size of Adam for the model."""
    policy_learning_rate: float = 3e-4
    """Step size of Adam for the actor."""
    value_learning_rate: float = 1e-3
    """Step size of Adam for the critic."""
    weight_decay: float = 1e-6
    """L2 regularization of the model."""
    grad_clip: float = 1.0
    """Largest global gradient norm, for model, actor and critic each."""
    reconstruction_scale: float = 1.0
    """Weight of the reconstruction loss."""
    prediction_scale: float = 1.0
    """Weight of the reconstruction loss of predicted latents."""
    dynamics_scale: float = 1.0
    """Weight of the latent prediction loss."""
    reward_scale: float = 1.0
    """Weight of the reward loss."""
    done_scale: float = 1.0
    """Weight of the termination loss."""

    horizon: int = 10
    """Imagined steps from each start, for actor and critic."""
    discount: float | None = None
    """Discount per decision; None looks a fifth of the episode limit ahead, 0.95 to 0.99."""
    lam: float = 0.95
    """Weight of longer returns in the lambda-return."""
    entropy_scale: float = 3e-4
    """Factor of the actor's entropy bonus."""
    mean_scale: float = 1e-3
    """Weight of the squared means of continuous actions before tanh, which would saturate."""
    straight_through: float = 0.5
    """For classes: share of the actor's gradient through the model; the rest by score function."""
    real_value_scale: float = 0.3
    """Weight of the critic's loss on real steps, beside that on imagined ones."""
    slow_rate: float = 0.2
    """Share of the critic that enters its slow copy after each update."""
    return_rate: float = 0.01
    """Rate of the averages by which returns are scaled."""

    plan_horizon: int = 5
    """Steps that a search looks ahead before the critic speaks."""
    num_samples: int = 32
    """Action sequences per iteration of cem and random-shooting, the actor's included."""
    num_policy_samples: int = 8
    """Sequences that the actor proposes."""
    num_elites: int = 6
    """Best sequences, to which cem fits the next ones."""
    iterations: int = 3
    """Iterations of cem."""
    simulations: int = 16
    """Simulations of mcts per decision."""

    def __post_init__(self) -> None:
        problems = normalize(self, BOUNDS, prefix="agent.") or [
            f"agent.{text}" for is_wrong, text in self._rules() if is_wrong
        ]
        if problems:
            raise ConfigurationError(
                "; ".join(problems), self.name if isinstance(self.name, str) else None
            )

    def _rules(self) -> list[tuple[bool, str]]:
        """Whether each rule between fields is broken, and the sentence that says so."""
        samples = self.num_samples
        return [
            (
                self.num_elites > samples,
                f"num_elites must be <= num_samples ({samples}), got {self.num_elites}",
            ),
            (
                self.num_policy_samples > samples,
                f"num_policy_samples must be <= num_samples ({samples}), "
                f"got {self.num_policy_samples}",
            ),
            (
                bool(self.uncertainty_bonus) and self.ensemble_size < 2,
                f"uncertainty_bonus must be 0 with one member, which disagrees with none, got "
                f"{self.uncertainty_bonus}; set ensemble_size to 2 or more",
            ),
        ]

    @property
    def is_planner(self) -> bool:
        """Whether acting searches, rather than ask the actor."""
        return self.acting != "actor-critic"

    def search_bonus(self, *, explore: bool) -> float:
        """Reward per unit of disagreement in a search: curiosity is for exploring, a penalty (below
        0) for every decision.
        """
        return self.uncertainty_bonus if explore else min(self.uncertainty_bonus, 0.0)


_COUNTS = (
    *("latent_dim", "hidden_dim", "ensemble_size", "conv_depth", "policy_dim", "policy_layers"),
    *("batch_size", "batch_length", "prefill_agent_steps", "horizon", "plan_horizon"),
    *("num_samples", "num_elites", "iterations", "simulations"),
)
_SCALES = (
    *("reconstruction_scale", "prediction_scale", "dynamics_scale"),
    *("reward_scale", "done_scale"),
)
BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(_COUNTS, Bounds(1)),
    **dict.fromkeys(("num_policy_samples", "pretrain_updates", "weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys((*_SCALES, "entropy_scale", "mean_scale", "real_value_scale"), NOT_NEGATIVE),
    **dict.fromkeys(
        ("learning_rate", "policy_learning_rate", "value_learning_rate", "grad_clip"), POSITIVE
    ),
    **dict.fromkeys(("slow_rate", "return_rate", "discount"), Bounds(above=0, most=1)),
    **dict.fromkeys(("lam", "straight_through"), FRACTION),
    "updates_per_decision": POSITIVE,
    "bins": Bounds(2),
}
"""Which numbers the fields may hold."""

SIZES: Mapping[str, Mapping[str, int]] = {
    name: {"ensemble_size": 3, **sizes} for name, sizes in PUBLIC_PRESETS.items()
}
"""Preset -> sizes of the model: the public ones, with the members that the agent trains."""
_FURTHER: Mapping[str, Mapping[str, Any]] = {
    "ci": {"policy_dim": 32, "conv_depth": 2, "bins": 81},
    "base": {"policy_dim": 256, "batch_size": 64},
    "medium": {"policy_dim": 256, "batch_size": 64, "conv_depth": 32},
    "large": {"policy_dim": 512, "batch_size": 128, "conv_depth": 32},
}
"""What a preset has beside the sizes of its model."""


def _preset(name: str) -> Callable[[], MLPAgentConfig]:
    def make() -> MLPAgentConfig:
        """The config of this size."""
        own: dict[str, Any] = {**SIZES[name], **_FURTHER.get(name, {})}
        return MLPAgentConfig(name=f"mlp:{name}", **own)

    return make


PRESETS: Mapping[str, Callable[[], MLPAgentConfig]] = {name: _preset(name) for name in SIZES}
"""Preset name -> config."""


def resolve(config: MLPAgentConfig, env: EnvSpec) -> MLPAgentConfig:
    """Fill in what follows the environment: the discount, see :func:`derived_discount`."""
    if config.discount is not None:
        return config
    return replace(
        config, discount=derived_discount(env.episode_limit, denom=5, low=0.95, high=0.99)
    )


def make_spec(config: MLPAgentConfig, env: EnvSpec) -> AgentSpec:
    """What the system must know to run this agent in this env.

    Raises:
        ConfigurationError: If a search tree is asked for and actions cannot be branches of it.
    """
    if not env.obs or not env.action:
        raise ConfigurationError(
            f"env {env.name!r} needs at least one observation and one action key for mlp",
            config.name,
        )
    if config.acting == "mcts":
        _check_choices(config, env)
    sampling = SamplingSpec(
        batch_size=config.batch_size,
        length=config.batch_length,
        bootstrap=1,
        cross_episodes=True,
    )
    return AgentSpec(
        name=config.name,
        sampling=sampling,
        train_ratio=config.updates_per_decision * sampling.trained_positions,
        prefill_agent_steps=config.prefill_agent_steps,
        pretrain_updates=config.pretrain_updates,
        acting="planner" if config.is_planner else "light",
        metric_keys=METRIC_KEYS,
    )


def _check_choices(config: MLPAgentConfig, env: EnvSpec) -> None:
    continuous = [key for key, spec in env.action.items() if not spec.is_discrete]
    if continuous:
        raise ConfigurationError(
            f"agent.acting must be actor-critic, cem or random-shooting in {env.name}, got mcts: a "
            f"tree branches into discrete actions, and action {continuous[0]!r} is continuous",
            config.name,
        )
    choices = math.prod(count for spec in env.action.values() for count in spec.num_classes)
    if choices > MOST_CHOICES:
        raise ConfigurationError(
            f"agent.acting must be actor-critic, cem or random-shooting in {env.name}, got mcts: a "
            f"tree branches into at most {MOST_CHOICES} joint actions, and there are {choices}",
            config.name,
        )
