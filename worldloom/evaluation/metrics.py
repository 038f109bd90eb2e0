"""Errors of a world model on held-out sequences, in natural units; for every model behind the
protocol.

A sequence is filtered with its observations first (``warm_up`` steps), then followed by its actions
alone. Open-loop errors compare what was imagined k steps ahead with what came; where a model
reconstructs nothing (TD-MPC2) only latent errors exist. Legend: B batch, T time, W warm-up steps, K
open-loop steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.state import LatentState
from worldloom.evaluation.calibration import calibration
from worldloom.nn.functional import to_numpy

__all__ = ["EvaluationReport", "OpenLoop", "calibration", "evaluate_world_model", "open_loop"]

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class OpenLoop:
    """Predictions K steps ahead beside what came; numpy, time first.

    Attributes:
        latent: ``[K, B, F]`` features imagined and encoded.
        reward: ``[K, B]`` predicted and received.
        cont: ``[K, B]`` probability of going on, and whether it did; None when the model predicts
            none.
        obs: ``[K, B, *obs_shape]`` decoded and seen; None when the model reconstructs nothing.
        reconstruction: ``[B, *obs_shape]`` of the last filtered observation, decoded and seen; None
            likewise.
    """

    latent: Pairs
    reward: Pairs
    cont: Pairs | None = None
    obs: Pairs | None = None
    reconstruction: Pairs | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """Mean errors over a batch of sequences.

    Attributes:
        latent_error: Squared error of features, for 1..K steps ahead.
        obs_error: Squared error of observations, for 1..K steps ahead; empty when nothing is
            reconstructed.
        reward_mae: Absolute error of rewards, over all steps.
        reconstruction_error: Squared error of reconstructed observations; None when nothing is
            reconstructed.
        continue_calibration: Mean gap between predicted probability and frequency of going on,
            weighted by bin; None without.
        steps: What the errors were computed from.
    """

    latent_error: list[float]
    obs_error: list[float]
    reward_mae: float
    reconstruction_error: float | None
    continue_calibration: float | None
    steps: OpenLoop = field(repr=False)

    @property
    def one_step_error(self) -> float:
        """Error one step ahead: of observations where there are some, else of features."""
        return (self.obs_error or self.latent_error)[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready numbers."""
        names = (
            "latent_error",
            "obs_error",
            "reward_mae",
            "reconstruction_error",
            "continue_calibration",
            "one_step_error",
        )
        return {name: getattr(self, name) for name in names}


def evaluate_world_model(
    model: Any,
    data: Any,
    *,
    horizon: int = 15,
    warm_up: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    held_out: tuple[int, bool] | None = None,
) -> EvaluationReport:
    """Measure a model on held-out sequences.

    Args:
        model: Any world model.
        data: A replay buffer, or a batch of sequences ``[B, T, ...]`` with T >= warm_up + horizon.
        horizon: K.
        warm_up: W, at least 1.
        batch_size: Sequences drawn from a buffer.
        seed: Of that draw and of the latents.
        held_out: Which episodes of a buffer to draw from; ``(10, True)`` are those that a trainer
            holds out by default.

    Raises:
        ConfigurationError: If the sequences are too short.
    """
    horizon, warm_up = (
        checked(n, v, int, Bounds(1)) for n, v in (("horizon", horizon), ("warm_up", warm_up))
    )
    seed = checked("seed", seed, int, NOT_NEGATIVE)
    if hasattr(data, "sample"):
        data = data.sample(
            batch_size, warm_up + horizon, rng=np.random.default_rng(seed), held_out=held_out
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        steps = open_loop(model, data, horizon=horizon, warm_up=warm_up)
    return EvaluationReport(
        latent_error=_by_step(steps.latent),
        obs_error=_by_step(steps.obs) if steps.obs is not None else [],
        reward_mae=float(np.abs(steps.reward[0] - steps.reward[1]).mean()),
        reconstruction_error=_squared(steps.reconstruction)
        if steps.reconstruction is not None
        else None,
        continue_calibration=calibration(*steps.cont) if steps.cont is not None else None,
        steps=steps,
    )


@torch.no_grad()
def open_loop(model: Any, batch: Mapping[str, Tensor], *, horizon: int, warm_up: int) -> OpenLoop:
    """Filter ``warm_up`` observations, then imagine ``horizon`` steps.

    Raises:
        ConfigurationError: If the sequences are too short.
    """
    missing = [name for name in ("obs", "actions", "rewards") if name not in batch]
    if missing:
        raise ConfigurationError(
            f"a batch of sequences needs obs, actions and rewards, got {sorted(batch)}"
        )
    batch = {name: torch.as_tensor(value) for name, value in batch.items()}
    obs = _with_last(batch)
    actions = batch["actions"]
    length = obs.shape[1]
    if (
        warm_up < 1
        or horizon < 1
        or length < warm_up + horizon
        or actions.shape[1] < warm_up + horizon - 1
    ):
        raise ConfigurationError(
            f"sequences of {length} observations are too short for warm_up={warm_up} "
            f"and horizon={horizon}; "
            f"both must be >= 1 and their sum <= {length}"
        )
    was_training = model.training
    model.eval()
    try:
        states = _filtered(model, obs[:, : warm_up + horizon], actions, batch.get("task_id"))
        last = warm_up - 1
        dreamt = model.imagine(
            states[last], actions[:, last : last + horizon].transpose(0, 1), deterministic=True
        )
        decoded = [model.decode(state) for state in dreamt.states]
    finally:
        model.train(was_training)
    ahead = slice(warm_up, warm_up + horizon)
    came = slice(last, last + horizon)
    has_obs = "obs" in decoded[0]
    seen = _units(model, obs)
    return OpenLoop(
        latent=(
            to_numpy(dreamt.to_features_tensor()[1:]),
            to_numpy(torch.stack([s.features for s in states[ahead]])),
        ),
        reward=(
            to_numpy(dreamt.rewards.squeeze(-1)),
            to_numpy(batch["rewards"][:, came].transpose(0, 1)),
        ),
        cont=_continuation(dreamt.continues, batch, came),
        obs=(
            to_numpy(torch.stack([d["obs"] for d in decoded[1:]])),
            to_numpy(seen[:, ahead].transpose(0, 1)),
        )
        if has_obs
        else None,
        reconstruction=(to_numpy(decoded[0]["obs"]), to_numpy(seen[:, last])) if has_obs else None,
    )


def _filtered(model: Any, obs: Tensor, actions: Tensor, task: Tensor | None) -> list[LatentState]:
    """States after every observation; ``task`` [B] is told to a model that knows several."""
    knows_tasks = getattr(getattr(model, "config", None), "num_tasks", 1) > 1
    told = {"task_id": task} if knows_tasks and task is not None else {}
    states = [model.encode(obs[:, 0], deterministic=True, **told)]
    for t in range(1, obs.shape[1]):
        states.append(model.observe(states[-1], actions[:, t - 1], obs[:, t], deterministic=True))
    return states


def _with_last(batch: Mapping[str, Tensor]) -> Tensor:
    """Observations, with the one after the last action where it is known for all sequences."""
    obs = batch["obs"]
    if "last_obs" in batch and bool(batch.get("last_obs_mask", torch.ones(1)).all()):
        return torch.cat([obs, batch["last_obs"][:, None]], 1)
    return obs


def _continuation(
    predicted: Tensor | None, batch: Mapping[str, Tensor], came: slice
) -> Pairs | None:
    if predicted is None or "continues" not in batch:
        return None
    return to_numpy(predicted.squeeze(-1)), to_numpy(batch["continues"][:, came].transpose(0, 1))


def _units(model: Any, obs: Tensor) -> Tensor:
    """Observations as the model decodes them; a model that does not say so decodes fractions."""
    if hasattr(model, "natural_obs"):
        natural: Tensor = model.natural_obs(obs)
        return natural
    return obs.float() / 255.0 if obs.dtype == torch.uint8 else obs.float()


def _by_step(pairs: Pairs) -> list[float]:
    error = np.square(pairs[0] - pairs[1])
    return [float(step.mean()) for step in error]


def _squared(pairs: Pairs) -> float:
    return float(np.square(pairs[0] - pairs[1]).mean())
