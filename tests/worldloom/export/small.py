"""Agents that are small enough to be exported within a second or two."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec
from worldloom.training.tree_files import save_tree

SMALL: dict[str, dict[str, Any]] = {
    "dreamerv3:ci": {
        "deter": 16,
        "hidden": 8,
        "units": 8,
        "stoch": 4,
        "classes": 4,
        "depth": 2,
        "bins": 41,
    },
    "tdmpc2:ci": {
        "latent_dim": 16,
        "mlp_dim": 16,
        "encoder_dim": 16,
        "horizon": 2,
        "iterations": 2,
        "num_samples": 8,
        "num_elites": 3,
        "num_policy_samples": 2,
    },
    "r2dreamer:ci": {
        "deter": 16,
        "hidden": 8,
        "units": 8,
        "stoch": 4,
        "classes": 4,
        "depth": 2,
        "bins": 41,
    },
    "mlp:ci": {"latent_dim": 8, "hidden_dim": 16, "policy_dim": 8, "bins": 21, "conv_depth": 1},
}


def saved_agent(folder: Path, agent: str, env: str, settings: Any = None, **more: Any) -> Path:
    """An agent as a checkpoint has it; its weights are random, those that begin as zeros too."""
    config = make_agent_config(agent, {**SMALL[agent], **more})
    env_config = EnvConfig(env=env, **(settings or {}))
    spec = env_spec(env_config)
    made = make_agent(config, spec, seed=3)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in made.policy_tensors().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=draw))
    known = {**spec.to_dict(), "name": env, "settings": env_config.resolved().settings()}
    facts = {"agent": dataclasses.asdict(config), "env": known, "env_steps": 40, "train_steps": 7}
    save_tree(folder, {"learner": {"agent": made.state_dict(), "train_steps": 7}}, facts)
    return folder
