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
from worldloom.core.specs import EnvSpec

__all__ = ["public_config", "public_weights"]

PREFIX = "model."


def public_config(config: DreamerV3AgentConfig, env: EnvSpec, device: str) -> DreamerV3Config:
    """Settings of the public model with the agent's networks and factors of losses.

    Raises:
        ConfigurationError: If the env has what a public model cannot read.
    """
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
