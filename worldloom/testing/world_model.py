"""A world model of your own keeps the contract that trainer, planner and
evaluation rely on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.world_model import WorldModel
from worldloom.testing.contract import ContractError

__all__ = ["check_world_model"]

B = 3
T = 4


def check_world_model(make: Callable[[], Any], folder: Path | None = None) -> None:
    """Try every promise of :class:`worldloom.core.world_model.WorldModel` on a model with a small
    observation.

    Args:
        make: Builds a model; equal calls must give equal architectures. Its config has
            ``obs_shape`` and ``action_dim``.
        folder: Where to try saving and loading; not tried without.

    Raises:
        ContractError: Names the first promise that is not kept.
    """
    model = make()
    _expect(isinstance(model, WorldModel), "has all methods of WorldModel")
    obs = torch.rand(B, *model.config.obs_shape)
    actions = torch.zeros(T, B, model.config.action_dim)
    state = model.encode(obs)
    _check_steps(model, state, actions, obs)
    _check_loss(model)
    wrong = torch.zeros(B, model.config.action_dim + 1)
    try:
        model.predict(state, wrong)
    except ShapeMismatchError:
        pass
    else:
        raise ContractError(
            "predict must refuse actions of a wrong width with a ShapeMismatchError"
        )
    if folder is not None:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder)
        same = torch.equal(_features(model, obs), _features(again, obs))
        _expect(same, "a saved and loaded model encodes the same")


def _check_steps(model: Any, state: Any, actions: torch.Tensor, obs: torch.Tensor) -> None:
    width = state.feature_dim
    _expect(state.features.shape == (B, width), "encode gives features [B, F]")
    for name, other in (
        ("predict", model.predict(state, actions[0])),
        ("observe", model.observe(state, actions[0], obs)),
        ("initial_state", model.initial_state(B)),
    ):
        _expect(
            other.features.shape == (B, width), f"{name} gives features of the width of encode's"
        )
    _expect(
        torch.equal(_features(model, obs), _features(model, obs)),
        "encode(deterministic=True) repeats",
    )
    decoded = model.decode(state)
    _expect(decoded["reward"].shape == (B, 1), "decode gives reward [B, 1]")
    cont = decoded.get("continue")
    _expect(
        cont is None or bool(((cont >= 0) & (cont <= 1)).all()),
        "decode gives continue as a probability",
    )
    dreamt = model.imagine(state, actions)
    _expect(
        len(dreamt.states) == T + 1 and dreamt.rewards.shape == (T, B, 1),
        "imagine gives T + 1 states and rewards [T, B, 1]",
    )


def _check_loss(model: Any) -> None:
    lead = (B, T)
    config = model.config
    batch = {
        "obs": torch.rand(*lead, *config.obs_shape),
        "actions": torch.zeros(*lead, config.action_dim),
    }
    batch |= {"rewards": torch.zeros(lead), "continues": torch.ones(lead)}
    before = [value.clone() for value in model.state_dict().values()]
    losses = model.compute_loss(batch)
    _expect(all(value.ndim == 0 for value in losses.values()), "compute_loss gives 0-d tensors")
    _expect(losses["loss"].requires_grad, "the loss has a gradient")
    unchanged = all(
        torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True)
    )
    _expect(unchanged, "compute_loss changes nothing")


def _features(model: Any, obs: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.encode(obs, deterministic=True).features
    return features


def _expect(is_kept: bool, promise: str) -> None:
    if not is_kept:
        raise ContractError(f"the model breaks its contract: {promise}")
