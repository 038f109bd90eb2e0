"""TD-MPC2's settings and what the system must know of it. Needs no torch.

Defaults are the authors' (TD-MPC2, arXiv:2310.16828v2, and their code); a value of None means
"follow the environment" and is filled in by :func:`resolve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from worldloom.algorithms.tdmpc2.config import CI_PLANNER, SIZES, TDMPC2Planning, TDMPC2Sizes
from worldloom.core.discounts import derived_discount
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.protocol import AgentSpec, SamplingSpec
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import family_of

__all__ = [
    "ARCHITECTURE",
    "DEFAULT_PRESET",
    "ENV_DEFAULTS",
    "PRESETS",
    "RUN_LENGTHS",
    "TDMPC2AgentConfig",
    "make_spec",
    "resolve",
    "task_discounts",
]

DEFAULT_PRESET = "5m"

ENV_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dmc": {"action_repeat": 2, "frame_stack": 3, "image_size": 64, "grayscale": False},
    "gym": {"action_repeat": 1, "frame_stack": 3, "image_size": 64, "grayscale": False},
}
"""Env settings per suite; image size and frame stack concern image observations only."""

RUN_LENGTHS: Mapping[str, Mapping[str, int]] = {
    "dmc": {"env_steps": 4_000_000, "eval_every": 50_000},
}
"""How long the authors' runs are (arXiv:2310.16828v2, section 4)."""

ARCHITECTURE = frozenset(
    {
        "latent_dim",
        "encoder_dim",
        "encoder_layers",
        "mlp_dim",
        "num_channels",
        "num_q",
        "num_bins",
        "simnorm_dim",
        "episodic",
        "task_dim",
    }
)
"""Settings that decide the shape of the weights; a resumed run keeps them."""

METRIC_KEYS = {
    "pi_scale": "return_scale",
    "pi_entropy": "policy_entropy_nats{name=action}",
}
"""Names in the system's table of metrics."""

UNKNOWN_LIMIT = 500
"""Decisions that count for an episode without a known limit, where tasks' limits are added up."""
UNKNOWN_LIMIT_PREFILL = 2500
"""Prefill for an environment without a known time limit: what an episode of 500 decisions would
give.
"""


TASK_DIM = 96
SMALL_TASK_DIM = 64
SMALL_TASK_SET = 30
SMALL_TASK_NAMES = ("tdmpc2:5m", "tdmpc2:19m", "tdmpc2:48m")
"""The authors' embeddings have 96 components, but 64 for at most 30 tasks at these sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDMPC2AgentConfig(TDMPC2Sizes, TDMPC2Planning):
    """Settings of a TD-MPC2 agent."""

    name: str = "tdmpc2:5m"
    """Algorithm and preset."""

    episodic: Literal["auto", "on", "off"] = "auto"
    """Learn when episodes terminate; auto does where they may, never with several tasks."""
    task_dim: int | None = None
    """Size of a task's embedding, with several; None is the authors': 64, or 96 (see the guide)."""

    batch_size: int = 256
    """Windows per update."""
    rho: float | None = None
    """Weight decay of later steps of a window; None is 0.7 for gym, 0.5 elsewhere."""
    learning_rate: float = 3e-4
    """Step size of Adam."""
    encoder_lr_scale: float = 0.3
    """Factor on the encoder's step size."""
    grad_clip: float = 20.0
    """Largest global gradient norm, for the model and for the policy."""
    tau: float = 0.01
    """Speed of the target critics and of the running scale of the policy loss."""
    consistency_coef: float = 20.0
    """Weight of the latent consistency loss."""
    reward_coef: float = 0.1
    """Weight of the reward loss."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    termination_coef: float = 1.0
    """Weight of the termination loss."""
    entropy_coef: float = 1e-4
    """Weight of the policy's entropy."""
    bc_weight: float = 0.0
    """Weight of behaviour cloning in the policy's loss, on all rows; 0 clones nothing."""
    discount: float | None = None
    """Discount per decision; None derives it from the episode limit, of each task."""
    discount_denom: float = 5.0
    """The derived discount looks ahead one episode limit divided by this."""
    discount_min: float = 0.95
    """Lowest derived discount."""
    discount_max: float | None = None
    """Highest derived discount, also without a limit; None is 0.99 for gym, else 0.995."""

    iterations: int | None = None
    """Planner iterations; None is 6, and 8 with 20 or more action components."""
    num_policy_samples: int = 24
    """Sequences proposed by the policy prior."""
    min_std: float = 0.05
    """Lowest standard deviation of the planner's distribution."""
    max_std: float = 2.0
    """Highest, and initial, standard deviation of the planner's distribution."""

    updates_per_decision: float = 1.0
    """Updates per agent step, over the whole run."""
    prefill_agent_steps: int | None = None
    """Random agent steps before the first update; None is 5 episodes (per task), 1000 at least."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of products, on a CPU also of planning: float32, bfloat16, auto (the faster one)."""
    pretrain_updates: int | None = None
    """Updates in one burst after the prefill; None is as many as prefill steps."""

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
        group = self.simnorm_dim
        samples = self.num_samples
        ranges = [("bin_low", "bin_high"), ("log_std_min", "log_std_max"), ("min_std", "max_std")]
        return [
            (
                self.latent_dim % group != 0,
                f"latent_dim must be a multiple of simnorm_dim ({group}), got {self.latent_dim}",
            ),
            (
                self.num_elites > samples,
                f"num_elites must be <= num_samples ({samples}), got {self.num_elites}",
            ),
            (
                self.num_policy_samples >= samples,
                f"num_policy_samples must be in 0..{samples - 1}, below num_samples, "
                f"got {self.num_policy_samples}",
            ),
            *(
                (
                    getattr(self, low) > getattr(self, high),
                    f"{low} must be <= {high} ({getattr(self, high)}), got {getattr(self, low)}",
                )
                for low, high in ranges
            ),
        ]


_COUNTS = (
    *(
        "latent_dim",
        "encoder_dim",
        "encoder_layers",
        "mlp_dim",
        "num_channels",
        "simnorm_dim",
        "batch_size",
        "horizon",
    ),
    *("iterations", "num_samples", "num_elites", "prefill_agent_steps", "task_dim"),
)
BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(_COUNTS, Bounds(1)),
    **dict.fromkeys(("num_q", "num_bins"), Bounds(2)),
    **dict.fromkeys(("num_policy_samples", "pretrain_updates"), NOT_NEGATIVE),
    **dict.fromkeys(
        ("consistency_coef", "reward_coef", "value_coef", "termination_coef", "entropy_coef"),
        NOT_NEGATIVE,
    ),
    "bc_weight": NOT_NEGATIVE,
    **dict.fromkeys(
        ("learning_rate", "encoder_lr_scale", "grad_clip", "discount_denom", "rho"), POSITIVE
    ),
    **dict.fromkeys(("min_std", "max_std", "temperature", "updates_per_decision"), POSITIVE),
    **dict.fromkeys(("tau", "discount", "discount_min", "discount_max"), Bounds(above=0, most=1)),
    "dropout": Bounds(0, below=1),
}
"""Which numbers the fields may hold; targets use a pair of critics, hence two at least."""


_CI = {
    **CI_PLANNER,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "tau": 0.02,
    "iterations": 3,
    "num_policy_samples": 8,
    "prefill_agent_steps": 1000,
}
"""Of ``ci`` beside its sizes: small enough for a laptop and for tests. Small networks bear a
larger step size.
"""


def _preset(name: str) -> Callable[[], TDMPC2AgentConfig]:
    def make() -> TDMPC2AgentConfig:
        """The config of this size."""
        own: dict[str, Any] = {**SIZES[name], **(_CI if name == "ci" else {})}
        return TDMPC2AgentConfig(name=f"tdmpc2:{name}", **own)

    return make


PRESETS: Mapping[str, Callable[[], TDMPC2AgentConfig]] = {name: _preset(name) for name in SIZES}
"""Preset name -> config."""


def resolve(config: TDMPC2AgentConfig, env: EnvSpec) -> TDMPC2AgentConfig:
    """Fill in every setting that follows the environment: the task, not how it was spelled.

    Gymnasium's tasks have the settings that the authors give their Gymnasium tasks (``rho`` 0.7,
    discount at most 0.99), all others those of the paper.

    The derived discount is ``clip((f - 1) / f, discount_min, discount_max)`` with ``f =
    episode_limit / discount_denom``, in agent steps; without a known limit it is ``discount_max``.

    With several tasks :func:`task_discounts` has a discount of each, and ``discount`` and
    ``discount_max`` stay as they are.

    Raises:
        ConfigurationError: If the termination of several tasks is to be learned.
    """
    if env.tasks:
        return _resolve_tasks(config, env)
    is_gym = family_of(env.name) == "gym"
    discount_max = _discount_max(config, env.name)
    discount = config.discount
    if discount is None:
        discount = derived_discount(
            env.episode_limit,
            denom=config.discount_denom,
            low=config.discount_min,
            high=discount_max,
        )
    prefill = config.prefill_agent_steps or UNKNOWN_LIMIT_PREFILL
    if env.episode_limit is not None:
        prefill = config.prefill_agent_steps or max(1000, 5 * env.episode_limit)
    episodic = (
        config.episodic if config.episodic != "auto" else ("on" if env.may_terminate else "off")
    )
    config = replace(config, discount=discount, discount_max=discount_max, episodic=episodic)
    return _filled(config, env, prefill, is_gym=is_gym)


def task_discounts(config: TDMPC2AgentConfig, env: EnvSpec) -> tuple[float, ...]:
    """The discount of each task: as :func:`resolve` derives it for that task alone."""
    if config.discount is not None:
        return (config.discount,) * len(env.tasks)
    return tuple(
        derived_discount(
            task.episode_limit,
            denom=config.discount_denom,
            low=config.discount_min,
            high=_discount_max(config, task.env),
        )
        for task in env.tasks
    )


def _resolve_tasks(config: TDMPC2AgentConfig, env: EnvSpec) -> TDMPC2AgentConfig:
    """As :func:`resolve`, for several tasks."""
    if config.episodic == "on":
        raise ConfigurationError(
            f"agent.episodic on is for one task, and {env.name} has {len(env.tasks)}; leave it out",
            config.name,
        )
    # what follows from the list stays as it was when tasks join later
    first = [task for task in env.tasks if not task.joined]
    limits = [task.episode_limit or UNKNOWN_LIMIT for task in first]
    is_small = len(limits) <= SMALL_TASK_SET
    published = SMALL_TASK_DIM if is_small and config.name in SMALL_TASK_NAMES else TASK_DIM
    config = replace(config, episodic="off", task_dim=config.task_dim or published)
    is_gym = all(family_of(task.env) == "gym" for task in first)
    prefill = config.prefill_agent_steps or max(1000, 5 * sum(limits))
    return _filled(config, env, prefill, is_gym=is_gym)


def _filled(
    config: TDMPC2AgentConfig, env: EnvSpec, prefill: int, *, is_gym: bool
) -> TDMPC2AgentConfig:
    """Fill in what follows the env for one task and for several."""
    many_actions = sum(spec.size for spec in env.action.values()) >= 20
    return replace(
        config,
        rho=config.rho if config.rho is not None else (0.7 if is_gym else 0.5),
        iterations=config.iterations
        if config.iterations is not None
        else (8 if many_actions else 6),
        prefill_agent_steps=prefill,
        pretrain_updates=config.pretrain_updates
        if config.pretrain_updates is not None
        else prefill,
    )


def _discount_max(config: TDMPC2AgentConfig, env: str) -> float:
    if config.discount_max is not None:
        return config.discount_max
    return 0.99 if family_of(env) == "gym" else 0.995


def product_shapes(config: TDMPC2AgentConfig) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of the layers that take most of an update and of a plan."""
    return [
        (config.batch_size, config.latent_dim, config.mlp_dim),
        (config.batch_size, config.mlp_dim, config.mlp_dim),
        (config.num_samples, config.mlp_dim, config.mlp_dim),
    ]


def make_spec(config: TDMPC2AgentConfig, env: EnvSpec) -> AgentSpec:
    """What the system must know to run this agent in this env.

    Raises:
        ConfigurationError: If an action is not continuous.
    """
    discrete = [key for key, spec in env.action.items() if spec.is_discrete]
    if discrete:
        raise ConfigurationError(
            f"agent {config.name} plans in continuous action spaces only, but action "
            f"{discrete[0]!r} of {env.name} is discrete; "
            "use --agent dreamerv3 or mlp",
            config.name,
        )
    resolved = resolve(config, env)
    sampling = SamplingSpec(batch_size=config.batch_size, length=config.horizon, bootstrap=1)
    return AgentSpec(
        name=config.name,
        sampling=sampling,
        train_ratio=config.updates_per_decision * sampling.trained_positions,
        prefill_agent_steps=resolved.prefill_agent_steps or 0,
        pretrain_updates=resolved.pretrain_updates or 0,
        acting="planner",
        gives_priorities=True,
        can_compile=not env.tasks,  # no test holds several tasks
        knows_tasks=True,
        metric_keys=METRIC_KEYS,
    )
