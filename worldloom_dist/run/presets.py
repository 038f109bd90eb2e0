"""Whole runs by name. A preset is a function that returns a ``RunConfig``; every flag the user
gives overrides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from worldloom.envs.config import EnvConfig
from worldloom_dist.run.config import ActorsConfig, LearnerConfig, ReplayConfig, RunConfig

__all__ = ["PRESETS", "config_changes", "preset_changes"]

OWN_TO_A_RUN = ("preset", "run_dir", "resume", "if_exists")


def quick() -> RunConfig:
    """TD-MPC2 learns Pendulum-v1 from scratch on a laptop: a few minutes on two cores, no extra
    packages.
    """
    return RunConfig(
        preset="quick",
        env=EnvConfig(env="gym:Pendulum-v1"),
        agent="tdmpc2:ci",
        workers=2,
        env_steps=5_000,
        eval_every=2_000,
        eval_episodes=20,
        actors=ActorsConfig(chunk_rows=32, max_chunk_age_s=0.5, pull_interval_s=0.5),
        replay=ReplayConfig(shards=2, capacity_steps=100_000),
        learner=LearnerConfig(
            publish_every_s=0.5, checkpoint_every_s=20.0, checkpoint_every_steps=2_000
        ),
    )


def debug() -> RunConfig:
    """Every role once around in seconds, on a built-in toy: for tests and for trying a change."""
    return RunConfig(
        preset="debug",
        env=EnvConfig(env="toy:point"),
        agent="tdmpc2:ci",
        agent_overrides={
            "batch_size": 16,
            "prefill_agent_steps": 100,
            "num_samples": 16,
            "num_elites": 4,
            "num_policy_samples": 4,
        },
        workers=1,
        env_steps=400,
        eval_every=200,
        eval_episodes=2,
        train_ratio=12.0,
        actors=ActorsConfig(chunk_rows=16, max_chunk_age_s=0.5, pull_interval_s=0.2),
        replay=ReplayConfig(shards=1, capacity_steps=10_000),
        learner=LearnerConfig(
            publish_every_s=0.2, checkpoint_every_s=2.0, checkpoint_every_steps=200
        ),
    )


def dmc_proprio() -> RunConfig:
    """DreamerV3 on the DeepMind Control Suite from state, with the published settings; name the
    task with --env.
    """
    return RunConfig(
        preset="dmc-proprio",
        env=EnvConfig(env="dmc:walker-walk", action_repeat=1),
        agent="dreamerv3:size1m",
        workers=16,
        train_ratio=1024.0,
        env_steps=1_100_000,
        eval_every=50_000,
        # all rows of the run; the published 5 million are never filled
        replay=ReplayConfig(shards=2, capacity_steps=1_200_000),
    )


def atari100k() -> RunConfig:
    """DreamerV3 with 110,000 decisions of an Atari game, with the published settings; name the game
    with --env.
    """
    return RunConfig(
        preset="atari100k",
        env=EnvConfig(
            env="atari:pong",
            action_repeat=4,
            image_size=64,
            grayscale=False,
            sticky=0.0,
            noops=30,
            full_actions=False,
        ),
        agent="dreamerv3:size200m",
        workers=1,
        train_ratio=256.0,
        env_steps=440_000,
        eval_every=40_000,
        # all rows of the run; the published 5 million are never filled
        replay=ReplayConfig(capacity_steps=120_000),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quick": quick,
    "debug": debug,
    "dmc-proprio": dmc_proprio,
    "atari100k": atari100k,
}


def preset_changes(config: RunConfig) -> list[str]:
    """What a run has otherwise than its preset, each as ``name was -> is``: no setting of a preset
    is changed unsaid. Empty where the run was made with a preset that is no more.
    """
    make = PRESETS.get(config.preset)
    return [] if make is None else config_changes(make(), config)


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
