"""Whole runs by name. A preset is a function that returns a ``RunConfig``; every flag the user gives overrides it."""

from __future__ import annotations

from collections.abc import Callable

from worldloom.envs.config import EnvConfig
from worldloom_dist.config import ActorsConfig, LearnerConfig, ReplayConfig, RunConfig

__all__ = ["PRESETS"]


def quick() -> RunConfig:
    """TD-MPC2 learns Pendulum-v1 from scratch on a laptop: a few minutes on two cores, no extra packages."""
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
        learner=LearnerConfig(publish_every_s=0.5, checkpoint_every_s=20.0, checkpoint_every_steps=2_000),
    )


def debug() -> RunConfig:
    """Every role once around in seconds, on a built-in toy: for tests and for trying a change."""
    return RunConfig(
        preset="debug",
        env=EnvConfig(env="toy:point"),
        agent="tdmpc2:ci",
        agent_overrides={"batch_size": 16, "prefill_agent_steps": 100, "num_samples": 16, "num_elites": 4, "num_policy_samples": 4},
        workers=1,
        env_steps=400,
        eval_every=200,
        eval_episodes=2,
        train_ratio=12.0,
        actors=ActorsConfig(chunk_rows=16, max_chunk_age_s=0.5, pull_interval_s=0.2),
        replay=ReplayConfig(shards=1, capacity_steps=10_000),
        learner=LearnerConfig(publish_every_s=0.2, checkpoint_every_s=2.0, checkpoint_every_steps=200),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {"quick": quick, "debug": debug}
