"""The public face of what a DreamerV3 agent trained: its settings and its weights under the names
of :class:`DreamerV3WorldModel`. No torch.

The agent's ``model.NAME`` is the public model's ``net.NAME``; actor and critics are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldloom.algorithms.dreamerv3.config import DreamerV3Config
from worldloom.algorithms.dreamerv3.spec import DreamerV3AgentConfig
from worldloom.algorithms.single_space import public_spaces
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import EnvSpec

__all__ = ["public_config", "public_weights"]

PREFIX = "model."


def public_config(config: DreamerV3AgentConfig, env: EnvSpec, device: str) -> DreamerV3Config:
    """Settings of the public model with the agent's networks, discount and factors of losses.

    Raises:
        ConfigurationError: If the env has what a public model cannot read, or the agent learns a
            discount of 0.
    """
    discount = 1.0 - 1.0 / config.horizon
    if config.learn_discount and not discount:
        raise ConfigurationError(
            "horizon must be >= 2 for a world model of the public API, got 1, with which the "
            "continuation head learns 0 everywhere; use the agent (worldloom_dist.evaluate)"
        )
    kl = config.scale_dyn + config.scale_rep
    is_half = config.precision == "bfloat16" or (
        config.precision == "auto" and device.startswith("cuda")
    )
    return DreamerV3Config.of(
        config,
        **public_spaces(env),
        model_name=config.name.partition(":")[2],
        encoder_type="cnn" if next(iter(env.obs.values())).is_image else "mlp",
        kl_free=config.free_nats,
        kl_balance=config.scale_dyn / kl if kl else 0.5,
        loss_scales={
            "reconstruction": config.scale_obs,
            "kl": kl,
            "reward": config.scale_rew,
            "continue": config.scale_con,
        },
        discount=discount,
        continue_scale=discount if config.learn_discount else 1.0,
        learning_rate=config.lr,
        dtype="bfloat16" if is_half else "float32",
        device=device,
    )


def public_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The public model's tensors, from the agent's ``state_dict``."""
    networks = state["networks"]
    return {
        "net." + name.removeprefix(PREFIX): value
        for name, value in networks.items()
        if name.startswith(PREFIX)
    }
