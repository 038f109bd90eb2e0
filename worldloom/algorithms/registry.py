"""From the text after ``--agent`` to a config, a spec, a policy or an agent. Imports torch only
when an agent is built.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from worldloom.core.config_base import WorldModelConfig
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError, nearest
from worldloom.core.protocol import Agent, AgentSpec, Policy
from worldloom.core.specs import EnvSpec

__all__ = [
    "AgentConfig",
    "agent_names",
    "agent_spec",
    "architecture_changes",
    "env_defaults",
    "make_agent",
    "make_agent_config",
    "make_policy",
    "trained_config",
    "trained_weights",
]

ALGORITHMS = {
    "dreamerv3": "worldloom.algorithms.dreamerv3",
    "tdmpc2": "worldloom.algorithms.tdmpc2",
}
"""Algorithm name -> package; each has a torch-free ``spec`` module (CONFIG, PRESETS, make_spec) and
an ``agent`` module.
"""


class AgentConfig(Protocol):
    """A frozen dataclass with the settings of one algorithm; ``name`` is ``algorithm:preset``."""

    name: str


def agent_names() -> list[str]:
    """Every ``algorithm:preset`` that can be asked for."""
    return [
        f"{algorithm}:{preset}"
        for algorithm in sorted(ALGORITHMS)
        for preset in _spec_module(algorithm).PRESETS
    ]


def make_agent_config(name: str, overrides: Mapping[str, Any] | None = None) -> AgentConfig:
    """The config of ``algorithm:preset`` with fields replaced.

    Raises:
        ModelNotFoundError: If the algorithm or the preset does not exist.
        ConfigurationError: If a field does not exist or its value is not allowed.
    """
    algorithm, _, preset = name.partition(":")
    if algorithm not in ALGORITHMS:
        raise ModelNotFoundError(name, agent_names())
    module = _spec_module(algorithm)
    preset = preset or module.DEFAULT_PRESET
    if preset not in module.PRESETS:
        raise ModelNotFoundError(name, agent_names())
    config = module.PRESETS[preset]()
    known = {f.name for f in dataclasses.fields(config)} - {"name"}
    for field in overrides or {}:
        if field not in known:
            raise ConfigurationError(
                f"agent.{field}: {algorithm} has no such setting{nearest(field, known)}"
            )
    replaced: AgentConfig = dataclasses.replace(config, **(overrides or {}))
    return replaced


def agent_spec(config: AgentConfig, env: EnvSpec) -> AgentSpec:
    """What the system must know to run this agent in this env.

    Raises:
        ConfigurationError: If the agent cannot act in the env (for example TD-MPC2 with discrete
            actions).
    """
    spec: AgentSpec = _spec_module(_algorithm(config)).make_spec(config, env)
    return spec


def env_defaults(config: AgentConfig) -> Mapping[str, Mapping[str, Any]]:
    """Env settings the algorithm was published with: suite -> settings of
    ``envs.config.EnvConfig``; flags override them.
    """
    defaults: Mapping[str, Mapping[str, Any]] = _spec_module(_algorithm(config)).ENV_DEFAULTS
    return defaults


def architecture_changes(old: AgentConfig, new: AgentConfig) -> list[str]:
    """One sentence per setting that would make the weights of ``old`` unusable for ``new``."""
    if old.name != new.name:
        return [f"agent: the run was made with {old.name!r}, not {new.name!r}"]
    names = sorted(_spec_module(_algorithm(old)).ARCHITECTURE)
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
    return importlib.import_module(ALGORITHMS[name.partition(":")[0]] + ".trained")


def _algorithm(config: AgentConfig) -> str:
    return config.name.partition(":")[0]


def _spec_module(algorithm: str) -> Any:
    return importlib.import_module(ALGORITHMS[algorithm] + ".spec")


def _agent_module(config: AgentConfig) -> Any:
    return importlib.import_module(ALGORITHMS[_algorithm(config)] + ".agent")
