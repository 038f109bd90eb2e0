"""The public face of what an agent with the plain latent model trained: its settings and its
weights under the names of :class:`MLPWorldModel`. No torch.

The public model is an ensemble of whole models; the agent's members share encoder and decoder, so
each of the public ones has a copy of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldloom.algorithms.mlp.config import MLPConfig
from worldloom.algorithms.mlp.spec import OBS_LEAST, REWARD_LEAST, MLPAgentConfig
from worldloom.algorithms.single_space import public_spaces
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import EnvSpec

__all__ = ["public_config", "public_weights"]

SHARED = ("encoder", "decoder")
STACKED = ("dynamics", "reward", "done")


def public_config(config: MLPAgentConfig, env: EnvSpec, device: str) -> MLPConfig:
    """Settings of the public model with the agent's networks and weights of losses.

    Raises:
        ConfigurationError: If the env has what a public model cannot read.
    """
    spaces = public_spaces(env)
    if next(iter(env.obs.values())).is_image:
        raise ConfigurationError(
            f"the agent reads the image of {env.name} by convolutions, which the public MLP model "
            "does not have; use the agent (worldloom_dist.evaluate)"
        )
    return MLPConfig(
        **spaces,
        model_name=config.name.partition(":")[2],
        latent_dim=config.latent_dim,
        hidden_dim=config.hidden_dim,
        ensemble_size=config.ensemble_size,
        horizon=config.batch_length,
        reconstruction_scale=config.reconstruction_scale,
        dynamics_scale=config.dynamics_scale,
        reward_scale=config.reward_scale,
        continue_scale=config.done_scale,
        learning_rate=config.learning_rate,
        device=device,
    )


def public_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The public model's tensors, from the agent's ``state_dict``.

    The agent reads numbers, and predicts them and rewards, in units of their running deviation. The
    public model has no such units: they are multiplied into its first and last layers.
    """
    networks = state["networks"]
    members = len(networks["model.dynamics.layers.0.weight"])
    found = {}
    for name, value in networks.items():
        place, _, rest = name.partition(".")
        part, _, rest = rest.partition(".")
        if place != "model":
            continue
        for k in range(members):
            if part in SHARED:
                found[f"members.{k}.{part}.{rest}"] = value
            elif part in STACKED:
                # the public model counts its activations as layers
                _, index, kind = rest.split(".")
                found[f"members.{k}.{part}.{2 * int(index)}.{kind}"] = value[k]
    obs = _mean_and_std(networks["model.obs_moments.averages"], least=OBS_LEAST)
    reward = _mean_and_std(networks["model.reward_moments.averages"], least=REWARD_LEAST)
    for k in range(members):
        _read_in_units(found, f"members.{k}.encoder.0", *obs)
        _write_in_units(found, f"members.{k}.decoder.4", *obs)
        _write_in_units(found, f"members.{k}.reward.2", *reward)
    return found


def _mean_and_std(averages: Any, *, least: float) -> tuple[Any, Any]:
    """As ``RunningMoments.mean_and_std``; any array will do, which keeps torch out of here."""
    coarse, rest, variance, count = averages
    is_new = (count == 0) * 1.0
    std = variance.clip(min=least**2) ** 0.5
    return coarse + rest, std * (1 - is_new) + is_new


def _read_in_units(found: dict[str, Any], layer: str, mean: Any, std: Any) -> None:
    weight = found[f"{layer}.weight"] / std
    found[f"{layer}.bias"] = found[f"{layer}.bias"] - weight @ mean
    found[f"{layer}.weight"] = weight


def _write_in_units(found: dict[str, Any], layer: str, mean: Any, std: Any) -> None:
    found[f"{layer}.weight"] = found[f"{layer}.weight"] * std[:, None]
    found[f"{layer}.bias"] = found[f"{layer}.bias"] * std + mean
