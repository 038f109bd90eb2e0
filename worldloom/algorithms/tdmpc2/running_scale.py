"""Scale of the policy's objective: the running spread of its values."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["percentile_spread", "updated_scale"]


def percentile_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """5th and 95th percentile of [B] values, linearly interpolated (0-d tensors)."""
    ordered = x.sort().values
    last = ordered.shape[0] - 1

    def at(share: float) -> Tensor:
        """The value that this share of the values does not exceed."""
        position = share * last
        below = int(position)
        return torch.lerp(ordered[below], ordered[min(below + 1, last)], position - below)

    return at(0.05), at(0.95)


def updated_scale(scale: Tensor, values: Tensor, tau: float) -> Tensor:
    """Move a 0-d scale towards max(p95 - p5, 1) of [B] values; a result that is not finite leaves
    it where it is.
    """
    low, high = percentile_spread(values)
    moved = scale + tau * ((high - low).clamp_min(1.0) - scale)
    return torch.where(moved.isfinite(), moved, scale)
