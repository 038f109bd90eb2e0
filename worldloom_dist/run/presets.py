"""Whole runs by name. A preset is a table of settings by the names that flags have; every flag the
user gives overrides it, and ``a+b`` puts one upon the other.

A run that names an env or an agent, and no preset, takes what its suite and agent were published
with (:func:`default_settings`). Sources: the configs of DreamerV3's authors
(github.com/danijar/dreamerv3, ``configs.yaml``) and of TD-MPC2's (github.com/nicklashansen/tdmpc2,
``config.yaml``, and arXiv:2310.16828v2, section 4: 4 million env steps on DMControl).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.envs.config import EnvConfig
from worldloom_dist.run.config import NO_PRESET, RunConfig

__all__ = [
    "PRESETS",
    "Preset",
    "config_changes",
    "default_config",
    "default_settings",
    "find_preset",
    "preset_changes",
    "with_settings",
]

OWN_TO_A_RUN = ("preset", "run_dir", "resume", "if_exists")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """A whole run by name.

    Attributes:
        name: As after ``--preset``.
        summary: What it is, one sentence.
        settings: Flag name (``replay.shards``, ``agent.lr``) -> value.
    """

    name: str
    summary: str
    settings: Settings

    def __call__(self) -> RunConfig:
        """The run."""
        return dataclasses.replace(with_settings(RunConfig(), self.settings), preset=self.name)


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """A run with settings changed; another agent drops what was set for the one before, and an
    env of another suite likewise.
    """
    for name, value in settings.items():
        section, dot, field = name.partition(".")
        if name == "env":
            other = EnvConfig(env=value)
            if other.suite == config.env.suite:
                other = dataclasses.replace(config.env, env=value)
            config = dataclasses.replace(config, env=other)
        elif name == "agent" and value != config.agent:
            config = dataclasses.replace(config, agent=value, agent_overrides={})
        elif section == "agent" and dot:
            overrides = {**config.agent_overrides, field: value}
            config = dataclasses.replace(config, agent_overrides=overrides)
        elif dot:
            changed = dataclasses.replace(getattr(config, section), **{field: value})
            config = dataclasses.replace(config, **{section: changed})
        else:
            config = dataclasses.replace(config, **{name: value})
    return config


QUICK = Preset(
    "quick",
    "TD-MPC2 learns Pendulum-v1 from scratch on a laptop: a few minutes on two cores, no extra "
    "packages.",
    {
        "env": "gym:Pendulum-v1",
        "agent": "tdmpc2:ci",
        "workers": 2,
        "env_steps": 5_000,
        "eval_every": 2_000,
        "eval_episodes": 20,
        "actors.chunk_rows": 32,
        "actors.max_chunk_age_s": 0.5,
        "actors.pull_interval_s": 0.5,
        "replay.shards": 2,
        "replay.capacity_steps": 100_000,
        "learner.publish_every_s": 0.5,
        "learner.checkpoint_every_s": 20.0,
        "learner.checkpoint_every_steps": 2_000,
    },
)

DEBUG = Preset(
    "debug",
    "Every role once around in seconds, on a built-in toy: for tests and for trying a change.",
    {
        "env": "toy:point",
        "agent": "tdmpc2:ci",
        "agent.batch_size": 16,
        "agent.prefill_agent_steps": 100,
        "agent.num_samples": 16,
        "agent.num_elites": 4,
        "agent.num_policy_samples": 4,
        "workers": 1,
        "env_steps": 400,
        "eval_every": 200,
        "eval_episodes": 2,
        "train_ratio": 12.0,
        "actors.chunk_rows": 16,
        "actors.max_chunk_age_s": 0.5,
        "actors.pull_interval_s": 0.2,
        "replay.shards": 1,
        "replay.capacity_steps": 10_000,
        "learner.publish_every_s": 0.2,
        "learner.checkpoint_every_s": 2.0,
        "learner.checkpoint_every_steps": 200,
    },
)

BENCHMARKS = (
    Preset(
        "gym-control",
        "DreamerV3 on Gymnasium's classic control, small enough for a laptop; name the task with "
        "--env.",
        {
            "env": "gym:CartPole-v1",
            "agent": "dreamerv3:ci",
            "workers": 2,
            "env_steps": 20_000,
            "eval_every": 2_000,
            "replay.capacity_steps": 100_000,
        },
    ),
    Preset(
        "mujoco",
        "TD-MPC2 on Gymnasium's MuJoCo tasks, one million env steps; name the task with --env.",
        {
            "env": "gym:HalfCheetah-v5",
            "agent": "tdmpc2:5m",
            "workers": 4,
            "env_steps": 1_000_000,
            "eval_every": 50_000,
            "replay.capacity_steps": 1_000_000,
        },
    ),
    Preset(
        "tdmpc2-dmc",
        "TD-MPC2 on the DeepMind Control Suite from state, with the published settings; name the "
        "task with --env.",
        {
            "env": "dmc:walker-walk",
            "env.action_repeat": 2,
            "agent": "tdmpc2:5m",
            "workers": 1,
            "env_steps": 4_000_000,
            "eval_every": 50_000,
            "replay.capacity_steps": 1_000_000,
        },
    ),
    Preset(
        "dmc-proprio",
        "DreamerV3 on the DeepMind Control Suite from state, with the published settings; name the "
        "task with --env.",
        {
            "env": "dmc:walker-walk",
            "env.action_repeat": 1,
            "agent": "dreamerv3:size1m",
            "workers": 16,
            "train_ratio": 1024.0,
            "env_steps": 1_100_000,
            "eval_every": 50_000,
            "replay.shards": 2,
            "replay.capacity_steps": 1_200_000,  # all rows of the run; 5 million are never filled
        },
    ),
    Preset(
        "dmc-vision",
        "DreamerV3 on the DeepMind Control Suite from images, with the published settings; name "
        "the task with --env.",
        {
            "env": "dmc:walker-walk",
            "env.action_repeat": 1,
            "env.pixels": True,
            "env.image_size": 64,
            "agent": "dreamerv3:size200m",
            "workers": 16,
            "train_ratio": 256.0,
            "env_steps": 1_100_000,
            "eval_every": 50_000,
            "replay.shards": 2,
            "replay.capacity_steps": 1_200_000,  # likewise
        },
    ),
    Preset(
        "atari100k",
        "DreamerV3 with 110,000 decisions of an Atari game, with the published settings; name the "
        "game with --env.",
        {
            "env": "atari:pong",
            "env.action_repeat": 4,
            "env.image_size": 64,
            "env.grayscale": False,
            "env.sticky": 0.0,
            "env.noops": 30,
            "env.full_actions": False,
            "agent": "dreamerv3:size200m",
            "workers": 1,
            "train_ratio": 256.0,
            "env_steps": 440_000,
            "eval_every": 40_000,
            "replay.capacity_steps": 120_000,  # likewise
        },
    ),
    Preset(
        "atari200m",
        "DreamerV3 with 51 million decisions of an Atari game, with the published settings but a "
        "replay of 1 million rows instead of 5; name the game with --env.",
        {
            "env": "atari:pong",
            "agent": "dreamerv3:size200m",
            "workers": 16,
            "train_ratio": 32.0,
            "env_steps": 204_000_000,
            "eval_every": 2_000_000,
            "replay.shards": 4,
            "replay.capacity_steps": 1_000_000,
        },
    ),
)

SMOKE: Mapping[str, Settings] = {
    "": {
        "workers": 1,
        "eval_every": 0,
        "eval_episodes": 1,
        "eval_max_steps": 50,
        "replay.shards": 1,
        "replay.capacity_steps": 10_000,
        "learner.checkpoint_every_s": 20.0,
        "learner.checkpoint_every_steps": 1_000,
    },
    "dreamerv3": {
        "agent": "dreamerv3:ci",
        "agent.batch_size": 4,
        "agent.batch_length": 16,
        "agent.report_length": 16,
        "train_ratio": 4.0,
    },
    "tdmpc2": {"agent": "tdmpc2:ci", "agent.prefill_agent_steps": 300},
}
"""What makes minutes of a benchmark: for every agent, then by algorithm."""
SMOKE_DECISIONS = 400


def _smoke(preset: Preset) -> Preset:
    """The same env and the same path through the system with a small agent, in minutes."""
    config = preset()
    repeat = config.env.resolved().action_repeat or 1
    smaller = {
        **SMOKE[""],
        **SMOKE[config.agent.partition(":")[0]],
        "env_steps": SMOKE_DECISIONS * repeat,
    }
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
DEFAULTS: Mapping[tuple[str, str], Settings] = {
    ("dreamerv3", "atari"): {"env_steps": 204_000_000, "eval_every": 2_000_000},
    ("dreamerv3", "dmc"): {"env_steps": 1_100_000, "eval_every": 50_000},
    ("tdmpc2", "dmc"): {"env_steps": 4_000_000, "eval_every": 50_000},
    ("", "mujoco"): {"env_steps": 1_000_000, "eval_every": 50_000},
    ("", "atari"): {"env_steps": 40_000_000, "eval_every": 1_000_000},
    ("", "toy"): {"env_steps": 20_000, "eval_every": 4_000},
    ("", ""): {"env_steps": 100_000, "eval_every": 10_000},
}
"""(algorithm, suite) -> how long a run is; an empty text stands for any other."""
MOST_ROWS = 1_000_000
LEAST_ROWS = 100_000
EVALUATIONS = 5
"""A run that is told to be short is evaluated this often at least."""


def default_settings(env: EnvConfig, agent: str, env_steps: int | None = None) -> dict[str, Any]:
    """How long a run of this env and agent is, how often it is evaluated, and what replay keeps.

    Args:
        env: The env.
        agent: ``algorithm:preset``.
        env_steps: What the user says instead of the published number.
    """
    algorithm = agent.partition(":")[0]
    suite = env.suite
    if suite == "gym" and env.name.partition("-v")[0].rpartition("/")[2] in MUJOCO_TASKS:
        suite = "mujoco"
    found: dict[str, Any] = {}
    for key in (("", ""), ("", suite), (algorithm, suite)):
        found |= DEFAULTS.get(key, {})
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
        if isinstance(value, Mapping):
            yield from _flat(value, f"{'agent' if name == 'agent_overrides' else path + name}.")
        else:
            yield ("env" if path == "env." and name == "env" else path + name), value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return "default" if values.get(name) is None else str(values[name])
