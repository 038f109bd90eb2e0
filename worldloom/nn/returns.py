"""Lambda-returns and the running scale of returns, as pure functions.

Source: DreamerV3, arXiv:2301.04104v2, Eq. 6-12, with the official code's indices (reward on
arrival). Legend: N rows, H horizon.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.nn.kernels import has_kernels, kernel

__all__ = ["NormalizerState", "ReturnNormalizer", "lambda_return"]


def lambda_return(
    reward: Tensor, cont: Tensor, carry: Tensor, value: Tensor, boot: Tensor, *, discount: float
) -> Tensor:
    """Bootstrapped return of a trajectory, computed backwards.

    R[t] = reward[t+1] + discount cont[t+1] ((1 - carry[t+1]) value[t+1] + carry[t+1] R[t+1])
    R[last] = boot

    Args:
        reward: [N, H+1] reward received on arrival; column 0 is unused.
        cont: [N, H+1] 1 (or a probability) where the episode goes on.
        carry: [N, H+1] weight of the longer return: lambda, or 0 where the trajectory ends.
        value: [N, H+1] values in reward units.
        boot: [N] value at the last step.
        discount: In (0, 1].

    Returns:
        [N, H] returns of steps 0..H-1.

    Raises:
        ShapeMismatchError: If the shapes differ.
    """
    if not reward.shape == cont.shape == value.shape == carry.shape:
        shapes = [tuple(x.shape) for x in (cont, carry, value)]
        raise ShapeMismatchError("lambda_return: cont, carry, value", tuple(reward.shape), shapes)
    live = discount * cont
    base = reward + live * (1 - carry) * value
    keep = live * carry
    is_constant = not (base.requires_grad or keep.requires_grad or boot.requires_grad)
    if has_kernels(reward.device) and is_constant:
        out = torch.empty(len(base), base.shape[1] - 1, device=base.device)
        kernel("lambda_returns")(base, keep, boot, out)
        return out
    returns = [boot]
    is_cpu = reward.device.type == "cpu"
    for t in range(reward.shape[1] - 1, 0, -1):
        returns.append(
            base[:, t] + keep[:, t] * returns[-1]
            if is_cpu
            else torch.addcmul(base[:, t], keep[:, t], returns[-1])
        )
    return torch.stack(returns[:0:-1], 1)


class NormalizerState(NamedTuple):
    """Running statistics, all 0-d float32 and 0 at the start: (low, high) percentiles or (mean,
    mean square), and ``weight``, the share of real data in them (used only with ``debias``).
    """

    first: Tensor
    second: Tensor
    weight: Tensor


class ReturnNormalizer(NamedTuple):
    """Running scale of returns: range between two percentiles, or mean and deviation.

    Without ``debias`` the averages start at 0 and are used as they are, as DreamerV3 does.
    """

    kind: Literal["percentile", "meanstd"] = "percentile"
    rate: float = 0.01
    limit: float = 1.0
    low: float = 0.05
    high: float = 0.95
    debias: bool = False

    def initial(self, device: torch.device | str = "cpu") -> NormalizerState:
        """Zeros."""
        return NormalizerState(*(torch.zeros((), device=device) for _ in range(3)))

    def update(self, state: NormalizerState, values: Tensor) -> NormalizerState:
        """Move the averages towards the statistics of ``values`` (any shape)."""
        flat = values.detach().flatten()
        if self.kind == "percentile":
            ordered = flat.sort().values
            first = _percentile(ordered, self.low)
            second = _percentile(ordered, self.high)
        else:
            first = flat.mean()
            second = flat.square().mean()
        new = (first, second, torch.ones_like(state.weight))
        return NormalizerState(
            *((1 - self.rate) * a + self.rate * b for a, b in zip(state, new, strict=True))
        )

    def offset_scale(self, state: NormalizerState) -> tuple[Tensor, Tensor]:
        """What to subtract and what to divide by."""
        fix = state.weight.clamp(min=self.rate) if self.debias else 1.0
        first = state.first / fix
        second = state.second / fix
        if self.kind == "percentile":
            return first, (second - first).clamp(min=self.limit)
        return first, (second - first.square()).clamp(min=0).sqrt().clamp(min=self.limit)


def _percentile(ordered: Tensor, level: float) -> Tensor:
    """Linear interpolation in sorted values; the positions are known beforehand, so nothing waits
    for the device.
    """
    position = level * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)
