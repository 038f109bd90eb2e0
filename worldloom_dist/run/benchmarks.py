"""The presets as tables: the demo, the one for tests, and the benchmarks as they were published.

Sources: the configs of DreamerV3's authors (github.com/danijar/dreamerv3, ``configs.yaml``) and of
TD-MPC2's (github.com/nicklashansen/tdmpc2, ``config.yaml``, and arXiv:2310.16828v2, section 4: 4
million env steps on DMControl).
"""

from __future__ import annotations

from collections.abc import Mapping

from worldloom_dist.run.settings import Preset, Settings

__all__ = ["BENCHMARKS", "DEBUG", "QUICK", "SMOKE", "SMOKE_DECISIONS"]

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
        "eval_videos": 1,
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
        "learner.standby": "off",
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
        "crafter",
        "DreamerV3 in the survival game Crafter from images, with the published settings.",
        {
            "env": "crafter:reward",
            "env.action_repeat": 1,
            "env.image_size": 64,
            "agent": "dreamerv3:size200m",
            "workers": 1,
            "train_ratio": 512.0,
            "env_steps": 1_100_000,
            "eval_every": 50_000,
            "replay.capacity_steps": 1_200_000,  # likewise
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
