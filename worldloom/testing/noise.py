"""Noise in the shapes of an env: what an agent is shown when its contract is checked.

Legend: N envs, B batch, T rows of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from worldloom.core.protocol import AgentSpec
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec

__all__ = ["random_batch", "random_obs", "random_windows"]


def random_obs(env: EnvSpec, num_envs: int, seed: int) -> dict[str, np.ndarray]:
    """Observations [N, ...] of every key."""
    rng = np.random.default_rng(seed)
    return {key: _values(spec, rng, num_envs) for key, spec in env.obs.items()}


def random_windows(env: EnvSpec, windows: int, rows: int, seed: int) -> SequenceBatch:
    """Rows [B, T, ...] of numpy arrays from the middle of episodes, without extras."""
    rng = np.random.default_rng(seed)
    lead = (windows, rows)
    columns = {name: _values(column, rng, *lead) for name, column in env.columns().items()}
    for flag in ("is_first", "terminated", "truncated"):
        columns[flag] = np.zeros(lead, bool)
    return SequenceBatch.from_columns(columns)


def random_batch(
    spec: AgentSpec,
    env: EnvSpec,
    seed: int,
    device: Any,
    extras: Mapping[str, np.ndarray],
    *,
    terminated: bool = False,
    reward: float | None = None,
) -> SequenceBatch:
    """A batch as replay hands it out, of tensors on the agent's device.

    Args:
        spec: Of the agent: which windows.
        env: Whose columns.
        seed: Of the noise.
        device: Of the agent.
        extras: What the agent's ``act`` emitted for some rows [N, ...]; windows hold the first.
        terminated: Do the windows end with the end of their episode?
        reward: In every row instead of noise.
    """
    rng = np.random.default_rng(seed)
    sampling = spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {name: _values(column, rng, *lead) for name, column in env.columns().items()}
    for flag in ("is_first", "terminated", "truncated"):
        columns[flag] = np.zeros(lead, bool)
    columns["terminated"][:, -1] = terminated
    if reward is not None:
        columns["reward"][:] = reward
    for name, column in spec.extras.items():
        columns[name] = np.broadcast_to(extras[name][0], (*lead, *column.shape)).copy()
    ids = np.arange(lead[0] * lead[1], dtype=np.int64).reshape(lead)
    return SequenceBatch.from_columns(columns, ids).map(lambda a: torch.from_numpy(a).to(device))


def _values(spec: ArraySpec, rng: np.random.Generator, *lead: int) -> np.ndarray:
    shape = (*lead, *spec.shape)
    if spec.num_classes:
        most = np.array(spec.num_classes).reshape(spec.shape)
        return rng.integers(0, most, shape).astype(spec.dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    return rng.uniform(-1, 1, shape).astype(spec.dtype)
