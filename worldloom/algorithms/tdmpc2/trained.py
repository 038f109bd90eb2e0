"""The public face of what a TD-MPC2 agent trained: its settings and its weights under the names of
:class:`TDMPC2WorldModel`. No torch.

The agent's ``model`` is the public model's ``net``; target critics and the running scale of the
policy loss keep their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldloom.algorithms.single_space import public_spaces
from worldloom.algorithms.tdmpc2.config import TDMPC2Config
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig, resolve
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import EnvSpec
from worldloom.envs.tasks import check_one_task

__all__ = ["public_config", "public_weights"]


def public_config(config: TDMPC2AgentConfig, env: EnvSpec, device: str) -> TDMPC2Config:
    """Settings of the public model with the agent's networks, discount and planner.

    Raises:
        ConfigurationError: If the env has what a public model cannot read.
    """
    check_one_task(env, "a world model of its own")
    spaces = public_spaces(env)
    is_image = next(iter(env.obs.values())).is_image
    if is_image != (len(spaces["obs_shape"]) == 3):
        raise ConfigurationError(
            f"the observation of {env.name} has three axes of numbers, which the public TD-MPC2 "
            "takes for an image; use the agent (worldloom_dist.evaluate)"
        )
    resolved = resolve(config, env)
    return TDMPC2Config.of(
        config,
        **spaces,
        model_name=config.name.partition(":")[2],
        horizon=config.horizon,
        num_samples=config.num_samples,
        num_elites=config.num_elites,
        temperature=config.temperature,
        gamma=resolved.discount,
        learning_rate=config.learning_rate,
        grad_clip=config.grad_clip,
        episodic=resolved.episodic == "on",
        device=device,
    )


def public_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The public model's tensors, from the agent's ``state_dict``."""
    return {
        **{f"net.{name}": value for name, value in state["model"].items()},
        **{f"target.{name}": value for name, value in state["target"].items()},
        "scale": state["updater"]["scale"],
    }
