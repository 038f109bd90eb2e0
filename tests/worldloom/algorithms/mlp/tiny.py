"""The smallest agent that exercises every part, envs for it, and windows of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from worldloom.algorithms.mlp.agent import MLPAgent
from worldloom.algorithms.mlp.spec import MLPAgentConfig
from worldloom.algorithms.registry import make_agent_config
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.testing.noise import random_batch

TINY: Mapping[str, Any] = {
    "latent_dim": 8,
    "hidden_dim": 12,
    "policy_dim": 8,
    "bins": 21,
    "batch_size": 4,
    "batch_length": 4,
    "horizon": 3,
    "plan_horizon": 3,
    "num_samples": 12,
    "num_elites": 4,
    "num_policy_samples": 3,
    "iterations": 2,
    "simulations": 5,
    "conv_depth": 1,
}
VECTOR = {"obs": ArraySpec((3,))}


def make_env(obs: Mapping[str, ArraySpec] = VECTOR, *, discrete: int = 0) -> EnvSpec:
    action = ArraySpec((), "int64", (discrete,)) if discrete else ArraySpec((2,))
    return EnvSpec(name="toy:check", obs=obs, action={"action": action})


def tiny_config(**changes: Any) -> MLPAgentConfig:
    config = make_agent_config("mlp:ci", {**TINY, **changes})
    assert isinstance(config, MLPAgentConfig)
    return config


def tiny_agent(env: EnvSpec | None = None, seed: int = 1, **changes: Any) -> MLPAgent:
    return MLPAgent(tiny_config(**changes), env or make_env(), seed=seed)


def random_windows(
    agent: MLPAgent,
    seed: int = 0,
    *,
    is_first: Sequence[tuple[int, int]] = (),
    ended: Sequence[tuple[int, int]] = (),
) -> SequenceBatch:
    """Windows of noise; flags at (window, row)."""
    batch = random_batch(agent.spec, agent.env, seed, "cpu", {})
    for b, t in is_first:
        batch.is_first[b, t] = True
        batch.reward[b, t] = 0.0
    for b, t in ended:
        batch.terminated[b, t] = True
    assert isinstance(batch.reward, torch.Tensor)
    return batch
