"""Step sizes over a run, and running averages of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worldloom.core.exceptions import CheckpointError
from worldloom.core.fields import Bounds, checked

__all__ = ["WeightAverage", "rate_factor"]


def rate_factor(step: int, *, total: int, warmup: int, schedule: str) -> float:
    """Factor on the step size of update ``step`` (counted from 0).

    Rises linearly over ``warmup`` updates; then stays (none, constant), falls linearly, or as half
    a cosine, to 0 at ``total``.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule in ("none", "constant"):
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers of floating point.

    Args:
        model: Whose.
        decay: Share of the average that stays at each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = checked("ema_decay", decay, float, Bounds(above=0, below=1))
        self.values = {name: value.detach().clone() for name, value in _floats(model).items()}
        self.is_swapped = False

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights into the average."""
        for name, value in _floats(model).items():
            self.values[name].lerp_(value, 1.0 - self.decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average, in place."""
        for name, value in _floats(model).items():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name] = kept
        self.is_swapped = not self.is_swapped

    def state_dict(self) -> dict[str, Any]:
        """The average (or, while swapped, what it was exchanged for)."""
        return {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            CheckpointError: If a tensor is missing or has another shape.
        """
        for name, value in self.values.items():
            saved: Tensor | None = state["values"].get(name)
            if saved is None or saved.shape != value.shape:
                raise CheckpointError(
                    f"averaged weights: tensor {name!r} is missing or has another "
                    "shape in the checkpoint"
                )
            value.copy_(saved)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in model.state_dict(keep_vars=False).items()
        if value.is_floating_point()
    }
