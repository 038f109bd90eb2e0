"""A small R2-Dreamer, and random batches for it."""

from __future__ import annotations

from typing import Any

import torch

from tests.worldloom.algorithms.dreamerv3 import dreamer_cases
from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of, random_batch
from worldloom.algorithms.r2dreamer.agent import R2DreamerAgent
from worldloom.algorithms.r2dreamer.spec import R2DreamerAgentConfig
from worldloom.algorithms.registry import make_agent, make_agent_config

TINY: dict[str, Any] = {
    name: value for name, value in dreamer_cases.TINY.items() if name != "report_length"
}


def tiny(**changes: Any) -> R2DreamerAgentConfig:
    config = make_agent_config("r2dreamer:ci", TINY | changes)
    assert isinstance(config, R2DreamerAgentConfig)
    return config


def tiny_agent(obs: str = "vector", action: str = "Box", **changes: Any) -> R2DreamerAgent:
    agent = make_agent(tiny(**changes), env_of(obs, action), seed=3)
    assert isinstance(agent, R2DreamerAgent)
    return agent


def windows(agent: R2DreamerAgent, seed: int = 0) -> Any:
    return random_batch(agent, agent.env, seed=seed)


def grads_of(loss: torch.Tensor, agent: R2DreamerAgent) -> dict[str, torch.Tensor | None]:
    """Gradient of every trained parameter, None where there is none."""
    named = agent.all_networks.trained()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))
