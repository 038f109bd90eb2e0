"""The smallest agent that exercises every part, envs for it, and batches of noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from worldloom.algorithms.registry import make_agent_config
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec

TINY: Mapping[str, Any] = {
    "latent_dim": 16,
    "encoder_dim": 16,
    "mlp_dim": 16,
    "num_q": 3,
    "num_bins": 11,
    "num_channels": 4,
    "batch_size": 5,
    "horizon": 3,
    "iterations": 2,
    "num_samples": 12,
    "num_elites": 4,
    "num_policy_samples": 3,
}
VECTOR = {"obs": ArraySpec((3,))}
IMAGE = {"obs": ArraySpec((64, 64, 3), "uint8")}
MIXED = {
    "camera": ArraySpec((48, 36, 3), "uint8"),
    "joints": ArraySpec((4,)),
    "side": ArraySpec((1, 32, 40), "uint8"),
    "speed": ArraySpec((), "float64"),
    "switch": ArraySpec((2, 2), "bool"),
}
ACTION = {"action": ArraySpec((2,))}
OBS_KINDS = {"vector": VECTOR, "image": IMAGE, "mixed": MIXED}


def tiny_config(**changes: Any) -> TDMPC2AgentConfig:
    config = make_agent_config("tdmpc2:ci", {**TINY, **changes})
    assert isinstance(config, TDMPC2AgentConfig)
    return config


def make_env(obs: Mapping[str, ArraySpec] = VECTOR, **changes: Any) -> EnvSpec:
    fields: dict[str, Any] = {
        "name": "dmc:x",
        "action": ACTION,
        "episode_limit": 100,
        "may_terminate": False,
        **changes,
    }
    return EnvSpec(obs=obs, **fields)


def random_values(spec: ArraySpec, rng: np.random.Generator, *lead: int) -> np.ndarray:
    shape = (*lead, *spec.shape)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(spec.dtype)


def random_obs(env: EnvSpec, num_envs: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: random_values(spec, rng, num_envs) for key, spec in env.obs.items()}


def random_batch(env: EnvSpec, config: TDMPC2AgentConfig, seed: int = 0) -> SequenceBatch:
    rng = np.random.default_rng(seed)
    lead = (config.batch_size, config.horizon + 1)
    columns = env.columns()
    rows = {name: random_values(spec, rng, *lead) for name, spec in columns.items()}
    for name in env.action:
        column = name if name == "action" else f"action/{name}"
        rows[column] = np.tanh(rows[column])
    rows["is_first"][:] = False
    rows["truncated"][:] = False
    rows["terminated"][:, :-1] = False
    return SequenceBatch.from_columns(rows).map(torch.tensor)
