"""Root-mean-square norm over the last axis, alone and fused with the SiLU that follows it almost
everywhere.

Shape legend: D features (last axis); everything before it is rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RMS_EPS", "RMSNorm", "inverse_rms", "norm_silu"]

RMS_EPS = 1e-4
"""Inside the square root (DreamerV3's value, 100 times the usual one: it matters for tiny
activations).
"""


def inverse_rms(x: Tensor, eps: float = RMS_EPS) -> Tensor:
    """(mean(x^2) + eps)^(-1/2) over the last axis, kept as an axis of size 1; float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse: Tensor = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return inverse


class _NormSilu(torch.autograd.Function):
    """silu(x / rms(x) * scale) with the derivative written out: a third of the memory passes of the
    composed graph.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """``x [..., D]`` normalised in float32, scaled, activated."""
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, scale, inverse)
        z = (x.float() * inverse).mul_(scale)
        return functional.silu(z, inplace=True).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of ``x`` and of ``scale``."""
        x, scale, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        dz = torch.ops.aten.silu_backward(grads[0].float(), normed * scale)
        weighted = (dz * normed).reshape(-1, x.shape[-1])
        dscale = weighted.sum(0)
        shared = torch.mv(weighted, scale).mul_(-1.0 / x.shape[-1]).reshape(inverse.shape)
        dx = dz.mul_(scale).addcmul_(normed, shared).mul_(inverse)
        return dx.to(x.dtype), dscale, None


def norm_silu(x: Tensor, scale: Tensor, eps: float = RMS_EPS) -> Tensor:
    """silu(RMSNorm(x)) with ``scale`` [D]; computes in float32 and returns the dtype of ``x``
    ``[..., D]``.
    """
    if not torch.is_grad_enabled():
        return functional.silu((x.float() * inverse_rms(x, eps)).mul_(scale), inplace=True).to(
            x.dtype
        )
    result: Tensor = _NormSilu.apply(x, scale, eps)  # type: ignore[no-untyped-call]
    return result


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + 1e-4) * scale over the last axis, in float32; no bias.

    >>> RMSNorm(3)(torch.tensor([2.0, 2.0, 2.0])).round(decimals=3)
    tensor([1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., D]``; dtype is kept."""
        x32 = x.float()
        return (x32 * (x32.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt() * self.scale).to(
            x.dtype
        )
