"""Planning by imagining: random shooting and the cross-entropy method, for any model with
``imagine``.

Legend: B states, S sequences per state, H horizon, A action, K elites.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, Bounds, checked
from worldloom.core.state import LatentState

__all__ = ["Plan", "plan", "sequence_returns"]

MIN_STD = 0.05


class Plan(NamedTuple):
    """Best action [B, A], the sequence it begins [B, H, A], and its predicted return [B]."""

    action: Tensor
    sequence: Tensor
    value: Tensor


@torch.no_grad()
def sequence_returns(
    model: Any, state: LatentState, sequences: Tensor, *, discount: float, uncertainty_bonus: float
) -> Tensor:
    """Predicted discounted return of sequences ``[B, S, H, A]``. ``[B, S]``.

    A step counts with the probability that the episode goes on until it; the bonus is per unit of
    ``model.uncertainty``.
    """
    sequences = _legal(model, sequences)
    count, samples, horizon, width = sequences.shape
    tiled = LatentState(
        deterministic=_tile(state.deterministic, samples),
        stochastic=_tile(state.stochastic, samples),
        latent_type=state.latent_type,
        metadata={
            name: _tile(v, samples) if isinstance(v, Tensor) and v.ndim else v
            for name, v in state.metadata.items()
        },
    )
    actions = sequences.permute(2, 0, 1, 3).reshape(horizon, count * samples, width)
    dreamt = model.imagine(tiled, actions)
    reward = dreamt.rewards.squeeze(-1)  # [H, B S]
    if uncertainty_bonus:
        doubt = [
            model.uncertainty(s, a).squeeze(-1)
            for s, a in zip(dreamt.states, actions, strict=False)
        ]
        reward = reward + uncertainty_bonus * torch.stack(doubt)
    alive = torch.ones_like(reward)
    if dreamt.continues is not None:
        alive[1:] = dreamt.continues.squeeze(-1)[:-1].cumprod(0)
    weights = discount ** torch.arange(horizon, device=reward.device)
    total: Tensor = (weights[:, None] * alive * reward).sum(0)
    return total.view(count, samples)


@torch.no_grad()
def plan(
    model: Any,
    state: LatentState,
    *,
    method: Literal["cem", "random"] = "cem",
    horizon: int = 15,
    num_samples: int = 256,
    num_elites: int = 32,
    iterations: int = 5,
    discount: float = 0.99,
    uncertainty_bonus: float = 0.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """Choose actions in [-1, 1], or one-hot codes where actions are discrete, by imagining what
    follows.

    Args:
        model: Any world model; ``uncertainty_bonus`` needs one with ``uncertainty``.
        state: B states.
        method: ``random`` shoots ``num_samples`` uniform sequences; ``cem`` refits a Gaussian to
            the best ``iterations`` times.
        horizon: Steps to look ahead.
        num_samples: Sequences per iteration.
        num_elites: Best ones, to which the next Gaussian is fitted (cem).
        iterations: Rounds of the search (cem).
        discount: Per step.
        uncertainty_bonus: Reward per unit of uncertainty; positive explores, negative avoids.
        generator: Source of the draws, on the model's device.

    Raises:
        ConfigurationError: If a size is not positive or there are more elites than samples.
    """
    horizon, num_samples, num_elites, iterations = (
        checked(name, value, int, Bounds(1))
        for name, value in zip(
            ("horizon", "num_samples", "num_elites", "iterations"),
            (horizon, num_samples, num_elites, iterations),
            strict=True,
        )
    )
    discount = checked("discount", discount, float, FRACTION)
    uncertainty_bonus = checked("uncertainty_bonus", uncertainty_bonus, float)
    method = checked("method", method, Literal["cem", "random"])
    if num_elites > num_samples:
        raise ConfigurationError(
            f"num_elites must be <= num_samples ({num_samples}), got {num_elites}"
        )
    if uncertainty_bonus and not hasattr(model, "uncertainty"):
        kind = type(model).__name__
        raise ConfigurationError(
            f"uncertainty_bonus must be 0 for a {kind}, got {uncertainty_bonus}; an "
            "mlp ensemble has uncertainty"
        )
    shape = (state.batch_size, num_samples, horizon, model.config.action_dim)
    options = {"discount": discount, "uncertainty_bonus": uncertainty_bonus}
    sequences = torch.rand(shape, generator=generator, device=state.device) * 2 - 1
    value = sequence_returns(model, state, sequences, **options)
    for _ in range(iterations - 1 if method == "cem" else 0):
        elites = _best(sequences, value, num_elites)
        mean = elites.mean(1, keepdim=True)
        std = elites.std(1, keepdim=True, unbiased=False).clamp(min=MIN_STD)
        noise = torch.randn(shape, generator=generator, device=state.device)
        # The best ones found so far stay among the candidates, so the result never gets worse.
        sequences = torch.cat([elites, (mean + std * noise)[:, num_elites:].clamp(-1, 1)], 1)
        value = sequence_returns(model, state, sequences, **options)
    best = _legal(model, _best(sequences, value, 1)[:, 0])
    return Plan(best[:, 0], best, value.amax(1))


def _legal(model: Any, sequences: Tensor) -> Tensor:
    """The actions that numbers in [-1, 1] stand for: themselves, or the code of the largest one
    where actions are discrete.
    """
    if model.config.action_type != "discrete":
        return sequences
    return torch.nn.functional.one_hot(sequences.argmax(-1), sequences.shape[-1]).to(sequences)


def _best(sequences: Tensor, value: Tensor, count: int) -> Tensor:
    """The ``count`` best sequences of each state, best first. [B, count, H, A]."""
    index = value.topk(count, dim=1).indices
    return sequences.gather(1, index[:, :, None, None].expand(-1, -1, *sequences.shape[2:]))


def _tile(part: Tensor | None, samples: int) -> Tensor | None:
    return None if part is None else part.repeat_interleave(samples, 0)
