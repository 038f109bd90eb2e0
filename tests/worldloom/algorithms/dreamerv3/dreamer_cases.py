"""Small configs, spaces and random batches that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from worldloom.algorithms.dreamerv3.agent import DreamerAgent
from worldloom.algorithms.dreamerv3.spec import LATENT_DETER, LATENT_STOCH, DreamerV3AgentConfig
from worldloom.algorithms.registry import make_agent_config
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec

TINY: dict[str, Any] = {
    "deter": 32,
    "hidden": 8,
    "stoch": 4,
    "classes": 4,
    "units": 8,
    "depth": 2,
    "blocks": 4,
    "bins": 41,
    "batch_size": 2,
    "batch_length": 6,
    "imagine_length": 3,
    "warmup": 0,
    "lr": 1e-3,
    "report_length": 4,
    "free_nats": 0.0,
}

VECTOR = ArraySpec((5,))
OBS_SPACES: dict[str, dict[str, ArraySpec]] = {
    "vector": {"obs": VECTOR},
    "scalar and float64": {"height": ArraySpec(()), "speed": ArraySpec((2, 2), "float64")},
    "discrete": {"obs": ArraySpec((), "int64", (3,))},
    "image HWC": {"obs": ArraySpec((32, 32, 3), "uint8")},
    "image CHW": {"obs": ArraySpec((1, 48, 32), "uint8")},
    "odd image": {"obs": ArraySpec((36, 50, 3), "uint8")},
    "huge image": {"obs": ArraySpec((40, 300, 1), "uint8")},
    "two images and a vector": {
        "camera": ArraySpec((32, 48, 3), "uint8"),
        "depth": ArraySpec((1, 40, 32), "uint8"),
        "joints": VECTOR,
    },
    "awkward names": {"training": VECTOR, "a.b": VECTOR, "items": ArraySpec((2,), "int64", (2, 3))},
}
ACTION_SPACES: dict[str, dict[str, ArraySpec]] = {
    "Discrete": {"action": ArraySpec((), "int64", (4,))},
    "Box": {"action": ArraySpec((3,))},
    "matrix Box": {"action": ArraySpec((2, 2))},
    "MultiDiscrete": {"action": ArraySpec((2,), "int64", (3, 5))},
    "Dict": {
        "arm": ArraySpec((2,)),
        "button": ArraySpec((), "int32", (2,)),
        "wheels": ArraySpec((2,), "int64", (2, 3)),
    },
}


def tiny(**changes: Any) -> DreamerV3AgentConfig:
    return make_agent_config("dreamerv3:ci", TINY | changes)  # type: ignore[return-value]


def env_of(obs: str = "vector", action: str = "Discrete") -> EnvSpec:
    return EnvSpec(name="test", obs=OBS_SPACES[obs], action=ACTION_SPACES[action])


def random_array(spec: ArraySpec, rng: np.random.Generator, *lead: int) -> np.ndarray:
    if spec.num_classes:
        return rng.integers(
            0, np.array(spec.num_classes).reshape(spec.shape), (*lead, *spec.shape)
        ).astype(spec.dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (*lead, *spec.shape)).astype(np.uint8)
    return rng.uniform(-1, 1, (*lead, *spec.shape)).astype(spec.dtype)


def random_batch(agent: DreamerAgent, env: EnvSpec, seed: int = 0) -> SequenceBatch:
    """A batch as replay would hand it out, with an episode border in the middle of each window."""
    rng = np.random.default_rng(seed)
    size = agent.spec.sampling.batch_size
    length = agent.spec.sampling.window_rows
    columns = {
        name: random_array(spec, rng, size, length)
        for name, spec in env.columns(agent.spec.extras).items()
    }
    if LATENT_DETER in columns:
        deter = torch.from_numpy(rng.uniform(-1, 1, columns[LATENT_DETER].shape).astype(np.float32))
        columns[LATENT_DETER] = deter.bfloat16().view(torch.uint16).numpy()
        columns[LATENT_STOCH] = rng.integers(
            0, agent.config.classes, columns[LATENT_STOCH].shape
        ).astype(np.uint8)
    border = length // 2
    for flag in ("is_first", "terminated", "truncated"):
        columns[flag] = np.zeros((size, length), bool)
    columns["terminated"][:, border - 1] = True
    columns["is_first"][:, border] = True
    return SequenceBatch.from_columns(columns).map(torch.from_numpy)


def act_once(
    policy: Any,
    env: EnvSpec,
    num_envs: int = 3,
    seed: int = 0,
    carry: Any = None,
    first: bool = True,
) -> Any:
    rng = np.random.default_rng(seed)
    obs = {name: random_array(spec, rng, num_envs) for name, spec in env.obs.items()}
    carry = policy.initial_carry(num_envs) if carry is None else carry
    return policy.act(obs, carry, np.full(num_envs, first), explore=True)
