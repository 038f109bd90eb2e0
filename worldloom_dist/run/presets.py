"""Whole runs by name. A preset is a table of settings by the names that flags have; every flag the
user gives overrides it, and ``a+b`` puts one upon the other.

A run that names an env or an agent, and no preset, takes what its suite and agent were published
with (:func:`default_settings`); an agent says so itself (``RUN_LENGTHS`` beside its settings).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from worldloom.algorithms.registry import run_lengths
from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.envs.config import EnvConfig
from worldloom_dist.run.benchmarks import BENCHMARKS, DEBUG, QUICK, SMOKE, SMOKE_DECISIONS
from worldloom_dist.run.config import NO_PRESET, RunConfig
from worldloom_dist.run.settings import Preset, with_settings

__all__ = [
    "PRESETS",
    "Preset",
    "config_changes",
    "default_config",
    "default_settings",
    "find_preset",
    "preset_changes",
    "smoke_settings",
    "with_settings",
]

OWN_TO_A_RUN = ("preset", "run_dir", "resume", "if_exists")


def smoke_settings(algorithm: str, action_repeat: int) -> dict[str, Any]:
    """What makes minutes of a run: a small agent, and few decisions.

    Args:
        algorithm: Of the run's agent.
        action_repeat: Env steps per decision.
    """
    return {**SMOKE[""], **SMOKE[algorithm], "env_steps": SMOKE_DECISIONS * action_repeat}


def _smoke(preset: Preset) -> Preset:
    """The same env and the same path through the system with a small agent, in minutes."""
    config = preset()
    repeat = config.env.resolved().action_repeat or 1
    smaller = smoke_settings(config.agent.partition(":")[0], repeat)
    return Preset(
        f"{preset.name}-smoke",
        f"As {preset.name}, in minutes: {SMOKE_DECISIONS} decisions with a small agent, to see "
        "that everything is installed and fits.",
        {**preset.settings, **smaller},
    )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (QUICK, DEBUG, *(p for b in BENCHMARKS for p in (b, _smoke(b))))
}

MUJOCO_TASKS = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)
"""Gymnasium ids, without their version, that are MuJoCo's."""
LENGTHS: Mapping[str, Mapping[str, int]] = {
    "crafter": {"env_steps": 1_100_000, "eval_every": 50_000},
    "mujoco": {"env_steps": 1_000_000, "eval_every": 50_000},
    "atari": {"env_steps": 40_000_000, "eval_every": 1_000_000},
    "toy": {"env_steps": 20_000, "eval_every": 4_000},
    "": {"env_steps": 100_000, "eval_every": 10_000},
}
"""Suite -> how long a run of it is whose agent says nothing; the empty text stands for any other.
"""
MOST_ROWS = 1_000_000
LEAST_ROWS = 100_000
EVALUATIONS = 5
"""A run that is told to be short is evaluated this often at least."""


def default_settings(env: EnvConfig, agent: str, env_steps: int | None = None) -> dict[str, Any]:
    """How long a run of this env and agent is, how often it is evaluated, and what replay keeps.

    Args:
        env: The env; several tasks take as many env steps as all of them alone.
        agent: ``algorithm:preset``.
        env_steps: What the user says instead of the published number.
    """
    own = run_lengths(agent)
    parts = [_published(part, own) for part in env.parts()]
    found: dict[str, Any] = {name: sum(part[name] for part in parts) for name in parts[0]}
    if env_steps is not None and env_steps > 0:
        found["env_steps"] = env_steps
        found["eval_every"] = max(1, min(found["eval_every"], env_steps // EVALUATIONS))
    rows = found["env_steps"] + found["env_steps"] // 10  # the first row of an episode is one more
    found["replay.capacity_steps"] = (
        MOST_ROWS if env.is_none else min(MOST_ROWS, max(LEAST_ROWS, rows))
    )
    every = RunConfig().learner.checkpoint_every_steps
    found["learner.checkpoint_every_steps"] = max(1_000, min(every, found["env_steps"] // 5))
    return found


def _published(env: EnvConfig, own: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """``env_steps`` and ``eval_every`` of one task; ``own`` are the agent's."""
    suite = env.suite
    if suite == "gym" and env.name.partition("-v")[0].rpartition("/")[2] in MUJOCO_TASKS:
        suite = "mujoco"
    return {**LENGTHS[""], **LENGTHS.get(suite, {}), **own.get(suite, {})}


def default_config(env: EnvConfig, agent: str, env_steps: int | None = None) -> RunConfig:
    """The run of an env and an agent without a preset."""
    config = dataclasses.replace(RunConfig(), preset=NO_PRESET, env=env, agent=agent)
    return with_settings(config, default_settings(env, agent, env_steps))


def find_preset(text: str) -> RunConfig:
    """The run of ``name``, or of ``a+b``: what b sets goes before what a sets.

    Raises:
        ConfigurationError: If there is no preset of a name; offers the nearest one.
    """
    config = RunConfig()
    for name in text.split("+"):
        if name not in PRESETS:
            raise ConfigurationError(
                f"no preset named {name!r}{nearest(name, PRESETS)} (available: "
                f"{', '.join(PRESETS)}; several are joined with +)"
            )
        config = with_settings(config, PRESETS[name].settings)
    return dataclasses.replace(config, preset=text)


def preset_changes(config: RunConfig) -> list[str]:
    """What a run has otherwise than its preset, each as ``name was -> is``: no setting of a preset
    is changed unsaid. Empty where the run was made with a preset that is no more.

    Without a preset, env, agent and env steps are what the rest follows from.
    """
    try:
        return config_changes(find_preset(config.preset), config)
    except ConfigurationError:
        if config.preset != NO_PRESET:
            return []
    usual = default_config(config.env, config.agent, config.env_steps)
    return config_changes(usual, config)


def config_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """What one run has otherwise than another, each as ``name was -> is``."""
    was, now = (dict(_flat(c.to_dict())) for c in (before, after))
    names = [
        name for name in now | was if name not in OWN_TO_A_RUN and was.get(name) != now.get(name)
    ]
    return [f"{name} {_shown(was, name)} -> {_shown(now, name)}" for name in names]


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by the names that flags have."""
    for name, value in tree.items():
        if path == "env." and name == "tasks":
            if value:
                yield "env.tasks", ", ".join(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{'agent' if name == 'agent_overrides' else path + name}.")
        else:
            yield ("env" if path == "env." and name == "env" else path + name), value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return "default" if values.get(name) is None else str(values[name])
