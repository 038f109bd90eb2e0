"""From the text after ``--agent`` to a config, a spec, a policy or an agent. Imports torch only
when an agent is built.

An agent of one's own needs no change here: ``--agent my_package.my_agent:small`` imports it by
name, and a package that declares an entry point of the group ``worldloom.agents`` gives it a short
one. ``docs/extending/agent.md`` has an example.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from worldloom.algorithms.finding import (
    AGENT_NAMES,
    ALGORITHMS,
    GuestAgent,
    agent_names,
    find_module,
    guest_agents,
    home_of,
    outside_module,
    spec_module,
    split_name,
    unknown_agent,
)
from worldloom.core.config_base import WorldModelConfig
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError, nearest
from worldloom.core.initial_state import InitialState, TrainedState
from worldloom.core.policy_step import PolicyStep
from worldloom.core.protocol import Agent, AgentSpec, Policy
from worldloom.core.specs import EnvSpec

__all__ = [
    "ALGORITHMS",
    "AgentConfig",
    "GuestAgent",
    "agent_names",
    "agent_spec",
    "architecture_changes",
    "begins_with_others",
    "env_defaults",
    "fit_state",
    "guest_agents",
    "make_agent",
    "make_agent_config",
    "make_policy",
    "make_step",
    "one_task_config",
    "outside_module",
    "own_field",
    "read_foreign",
    "run_lengths",
    "trained_config",
    "trained_weights",
]

SAME_SETTING: Mapping[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "learning_rate": ("lr",),
}
"""Other names of a setting, one of which an agent may have instead."""
STEP_NAMES = ("make_step",)
"""Of the module ``export``, which an agent may lack that is never exported."""
INITIAL_NAMES = ("fit_state", "one_task_config", "read_foreign")
"""Of the module ``initial``, which an agent may lack that begins with a run of its own env only."""


class AgentConfig(Protocol):
    """A frozen dataclass with the settings of one algorithm; ``name`` is ``algorithm:preset``."""

    name: str


def make_agent_config(name: str, overrides: Mapping[str, Any] | None = None) -> AgentConfig:
    """The config of ``algorithm:preset`` with fields replaced.

    Raises:
        ModelNotFoundError: If the algorithm or the preset does not exist.
        ConfigurationError: If a field does not exist or its value is not allowed.
    """
    algorithm, preset = split_name(name)
    if home_of(algorithm) is None:
        raise unknown_agent(name)
    module = spec_module(algorithm)
    preset = preset or module.DEFAULT_PRESET
    if preset not in module.PRESETS:
        raise ModelNotFoundError(name, [f"{algorithm}:{known}" for known in module.PRESETS])
    config: Any = module.PRESETS[preset]()
    if "name" not in getattr(config, "__dataclass_fields__", ()):
        raise ConfigurationError(
            f"agent {name!r}: its settings must be a dataclass with a field name: str, got "
            f"{type(config).__name__}"
        )
    config = dataclasses.replace(config, name=f"{algorithm}:{preset}")
    known = {f.name for f in dataclasses.fields(config)} - {"name"}
    values: dict[str, Any] = {}
    for field, value in (overrides or {}).items():
        own = own_field(config, field)
        if own not in known:
            raise ConfigurationError(
                f"agent.{field}: {algorithm} has no such setting{nearest(field, known)}"
            )
        if own in values and values[own] != value:
            raise ConfigurationError(
                f"agent.{field}: {values[own]} and {value} are given for one setting, which "
                f"{algorithm} calls {own}; leave one out"
            )
        values[own] = value
    replaced: AgentConfig = dataclasses.replace(config, **values)
    return replaced


def own_field(config: AgentConfig, field: str) -> str:
    """The name that an agent has for a setting: ``lr`` and ``learning_rate`` are one."""
    names = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    if field in names:
        return field
    return next((name for name in SAME_SETTING.get(field, ()) if name in names), field)


def agent_spec(config: AgentConfig, env: EnvSpec) -> AgentSpec:
    """What the system must know to run this agent in this env.

    Raises:
        ConfigurationError: If the agent cannot act in the env (for example TD-MPC2 with discrete
            actions).
    """
    spec: AgentSpec = spec_module(_algorithm(config)).make_spec(config, env)
    return spec


def env_defaults(config: AgentConfig) -> Mapping[str, Mapping[str, Any]]:
    """Env settings the algorithm was published with: suite -> settings of
    ``envs.config.EnvConfig``; flags override them.
    """
    defaults: Mapping[str, Mapping[str, Any]] = spec_module(_algorithm(config)).ENV_DEFAULTS
    return defaults


def run_lengths(name: str) -> Mapping[str, Mapping[str, int]]:
    """How long the runs were that an agent was published with: suite -> ``env_steps`` of one task,
    and ``eval_every``. Empty where its module says nothing (``RUN_LENGTHS``).

    Args:
        name: ``algorithm:preset``; empty, too, where there is no such algorithm.

    Raises:
        ConfigurationError: If the agent's module cannot be imported.
    """
    algorithm, _ = split_name(name)
    if home_of(algorithm) is None:
        return {}
    lengths: Mapping[str, Mapping[str, int]] = getattr(spec_module(algorithm), "RUN_LENGTHS", {})
    return lengths


def architecture_changes(old: AgentConfig, new: AgentConfig) -> list[str]:
    """One sentence per setting that would make the weights of ``old`` unusable for ``new``."""
    if old.name != new.name:
        return [f"agent: the run was made with {old.name!r}, not {new.name!r}"]
    names = sorted(spec_module(_algorithm(old)).ARCHITECTURE)
    changed = [
        (name, getattr(old, name), getattr(new, name))
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    return [
        f"agent.{name}: the run was made with {was!r}, not {now!r}" for name, was, now in changed
    ]


def make_agent(config: AgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0) -> Agent:
    """Build an agent that trains and acts. Equal arguments give equal weights."""
    agent: Agent = _agent_module(config).make_agent(config, env, device=device, seed=seed)
    return agent


def make_policy(
    config: AgentConfig,
    env: EnvSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
    num_envs: int | None = None,
) -> Policy:
    """Build only what acting needs. Its weights are those of ``make_agent`` with the same seed
    until ``load_weights``.

    Args:
        config, env: As for the agent that trains.
        device: Where it acts.
        seed: Of the draws that acting makes.
        num_envs: When given, each of that many envs has its own random generator, so that what env
            k does never depends on the other envs; every ``act`` then has exactly that many rows.
            Otherwise there is one generator.
    """
    policy: Policy = _agent_module(config).make_policy(
        config, env, device=device, seed=seed, num_envs=num_envs
    )
    return policy


def make_step(name: str, policy: Policy, *, planner: bool) -> tuple[Policy, PolicyStep]:
    """One decision of a policy of the agent ``name`` as a function of tensors.

    Args:
        name: ``algorithm:preset``.
        policy: From :func:`make_policy`, on the CPU, with its weights.
        planner: Search, where the algorithm has a planner beside a policy that acts alone.

    Returns:
        The policy that acts as the step does, and the step.

    Raises:
        ConfigurationError: If the agent has no step, or no planner.
    """
    algorithm, _ = split_name(name)
    try:
        module = find_module(algorithm, "export", STEP_NAMES)
    except ConfigurationError as error:
        raise ConfigurationError(f"agent {name!r} cannot be exported: {error.message}") from error
    found: tuple[Policy, PolicyStep] = module.make_step(policy, planner=planner)
    return found


def begins_with_others(config: AgentConfig) -> bool:
    """True when an agent can begin with what one of other tasks learned."""
    home = home_of(_algorithm(config))
    try:
        return home is not None and importlib.util.find_spec(f"{home}.initial") is not None
    except ImportError:  # its home is a module alone
        return False


def fit_state(
    config: AgentConfig, trained: TrainedState, agent: Agent, *, task: str | None = None
) -> InitialState:
    """The state of an untrained agent that begins with what one of other tasks learned.

    Args:
        config: Of the agent.
        trained: What was learned.
        agent: Untrained.
        task: Name of the one that is kept of several; by default the one with the agent's env.

    Raises:
        ConfigurationError: If it cannot; says how it could.
        CheckpointError: If the state is damaged.
    """
    found: InitialState = _initial_module(config).fit_state(trained, agent, task=task)
    return found


def read_foreign(config: AgentConfig, path: Path, env: EnvSpec) -> TrainedState:
    """What a file of another program holds, for an agent in ``env``.

    Raises:
        ConfigurationError: If the agent reads no files, or does not know the file's tasks.
        CheckpointError: If it is damaged, hostile, or something else.
    """
    found: TrainedState = _initial_module(config).read_foreign(config, path, env)
    return found


def one_task_config(config: AgentConfig, env: EnvSpec) -> AgentConfig:
    """Settings with which an agent of the tasks of ``env`` acts in one of them as it did.

    Raises:
        ConfigurationError: If the agent cannot be one of a single task.
    """
    found: AgentConfig = _initial_module(config).one_task_config(config, env)
    return found


def trained_config(config: AgentConfig, env: EnvSpec, device: str) -> WorldModelConfig:
    """Settings of the public world model whose networks an agent of this config trains.

    Raises:
        ConfigurationError: If the env has what a public model cannot read.
    """
    found: WorldModelConfig = _trained_module(config.name).public_config(config, env, device)
    return found


def trained_weights(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The public world model's tensors, from the ``state_dict`` of the agent ``name``."""
    found: dict[str, Any] = _trained_module(name).public_weights(state)
    return found


def _trained_module(name: str) -> Any:
    algorithm, _ = split_name(name)
    if algorithm not in ALGORITHMS:
        raise ConfigurationError(
            f"agent {name!r} comes from outside and names no public world model of this library; "
            "load its run with worldloom_dist.evaluate.load_policy"
        )
    home = f"{ALGORITHMS[algorithm]}.trained"
    if importlib.util.find_spec(home) is None:
        raise ConfigurationError(
            f"agent {name!r} has no world model in the public API of models; load its run as an "
            "agent, with worldloom.load_agent"
        )
    return importlib.import_module(home)


def _initial_module(config: AgentConfig) -> Any:
    if not begins_with_others(config):
        raise ConfigurationError(
            f"agent {config.name} begins with runs of its own env only; give a run folder, "
            "RUN/checkpoints/NAME, or what save wrote"
        )
    return find_module(_algorithm(config), "initial", INITIAL_NAMES)


def product_shapes(config: AgentConfig) -> tuple[tuple[int, int, int], ...]:
    """Rows, inputs and outputs of the layers that take most of an agent's time, for who measures
    how fast they are; empty where the agent does not say (``product_shapes`` of its ``spec``).
    """
    shapes = getattr(spec_module(_algorithm(config)), "product_shapes", None)
    return () if shapes is None else tuple(shapes(config))


def _algorithm(config: AgentConfig) -> str:
    return split_name(config.name)[0]


def _agent_module(config: AgentConfig) -> Any:
    return find_module(_algorithm(config), "agent", AGENT_NAMES)
