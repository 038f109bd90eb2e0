"""Root-mean-square norm over the last axis, alone and fused with the SiLU that follows it almost
everywhere.

On an accelerator torch's own kernels for the norm and its derivative take the place of the eight
and six that are launched on a CPU, where a launch costs nothing.

Shape legend: D features (last axis); everything before it is rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.nn.kernels import cdiv, has_kernels, kernel, rows_per_program

__all__ = [
    "RMS_EPS",
    "RMSNorm",
    "fused_norm",
    "fused_norm_gradient",
    "has_fused_norm",
    "inverse_rms",
    "norm_silu",
]

RMS_EPS = 1e-4
"""Inside the square root (DreamerV3's value, 100 times the usual one: it matters for tiny
activations).
"""


def inverse_rms(x: Tensor, eps: float = RMS_EPS) -> Tensor:
    """(mean(x^2) + eps)^(-1/2) over the last axis, kept as an axis of size 1; float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse: Tensor = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return inverse


def fused_norm(x: Tensor, scale: Tensor, eps: float = RMS_EPS) -> tuple[Tensor, Tensor]:
    """The norm of float32 ``x [..., D]`` times ``scale``, and :func:`inverse_rms`: one kernel."""
    result: tuple[Tensor, Tensor] = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], scale, eps)
    return result


def fused_norm_gradient(
    grad: Tensor, x: Tensor, inverse: Tensor, scale: Tensor, wanted: Sequence[bool] = (True, True)
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``scale`` from that of :func:`fused_norm`; None where not wanted."""
    result: tuple[Tensor, Tensor] = torch.ops.aten._fused_rms_norm_backward(
        grad, x, [x.shape[-1]], inverse, scale, list(wanted)
    )
    return result


def has_fused_norm(device: torch.device) -> bool:
    """True where the kernels are there and do what is expected of them, which is tried once."""
    return device.type == "meta" or (device.type != "cpu" and try_fused_norm(device))


@functools.cache
@torch.no_grad()
def try_fused_norm(device: torch.device) -> bool:
    """Waits for the device; the first update and the first decision are never being recorded."""
    x = torch.linspace(-2, 3, 24, device=device).view(3, 8)
    grad = torch.linspace(1, -1, 24, device=device).view(3, 8)
    scale = torch.linspace(0.5, 2, 8, device=device)
    inverse = inverse_rms(x)
    normed = x * inverse
    weighted = grad * scale
    d_x = (weighted - normed * (weighted * normed).mean(-1, keepdim=True)) * inverse
    try:
        y, found = fused_norm(x, scale)
        gradients = fused_norm_gradient(grad, x, found, scale)
        alone = fused_norm_gradient(grad, x, found, scale, (True, False))
    except (AttributeError, NotImplementedError, RuntimeError):  # torch has none for this device
        return False
    pairs = (
        (y, normed * scale),
        (found, inverse),
        (gradients[0], d_x),
        (gradients[1], (grad * normed).sum(0)),
        (alone[0], d_x),
    )
    return all(torch.allclose(one, other, atol=1e-4, rtol=1e-4) for one, other in pairs)


class _NormSilu(torch.autograd.Function):
    """silu(x / rms(x) * scale) with the derivative written out: a third of the memory passes of the
    composed graph.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """``x [..., D]`` normalised in float32, scaled, activated."""
        ctx.eps = eps
        if has_kernels(x.device):
            ctx.save_for_backward(x, scale)
            return _kernel_norm_silu(x, scale, eps)
        if has_fused_norm(x.device):
            z, inverse = fused_norm(x.float(), scale, eps)
            ctx.save_for_backward(x, scale, inverse)
            return functional.silu(z, inplace=True).to(x.dtype)
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, scale, inverse)
        z = (x.float() * inverse).mul_(scale)
        return functional.silu(z, inplace=True).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of ``x`` and of ``scale``."""
        x, scale, *inverses = ctx.saved_tensors
        if not inverses:
            return *_kernel_gradients(grads[0], x, scale, ctx.eps), None
        (inverse,) = inverses
        normed = x.float() * inverse
        dz = torch.ops.aten.silu_backward(grads[0].float(), normed * scale)
        if has_fused_norm(x.device):
            d_x, d_scale = fused_norm_gradient(dz, x.float(), inverse, scale)
            return d_x.to(x.dtype), d_scale, None
        weighted = (dz * normed).reshape(-1, x.shape[-1])
        dscale = weighted.sum(0)
        shared = torch.mv(weighted, scale).mul_(-1.0 / x.shape[-1]).reshape(inverse.shape)
        dx = dz.mul_(scale).addcmul_(normed, shared).mul_(inverse)
        return dx.to(x.dtype), dscale, None


def _kernel_norm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    rows = _as_rows(x)
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    kernel("norm_silu")(rows, scale.unsqueeze(0), out, None, None, eps)
    return out.view(x.shape)


def _kernel_gradients(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of ``x`` and ``scale``; the latter is summed over programs in a fixed order."""
    rows = _as_rows(x)
    d_x = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    count, width = rows.shape[1:]
    parts = cdiv(count, rows_per_program(count, width))
    d_scale = torch.empty(1, parts, width, device=x.device)
    kernel("norm_silu_gradient")(_as_rows(grad), rows, scale.unsqueeze(0), d_x, d_scale, eps, False)
    return d_x.view(x.shape), d_scale.sum((0, 1))


def _as_rows(x: Tensor) -> Tensor:
    """[..., D] -> [1, N, D] with features side by side."""
    rows = x.reshape(1, -1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def norm_silu(x: Tensor, scale: Tensor, eps: float = RMS_EPS) -> Tensor:
    """silu(RMSNorm(x)) with ``scale`` [D]; computes in float32 and returns the dtype of ``x``
    ``[..., D]``.
    """
    if not torch.is_grad_enabled() and has_kernels(x.device):
        return _kernel_norm_silu(x, scale, eps)
    if not torch.is_grad_enabled() and has_fused_norm(x.device):
        return functional.silu(fused_norm(x.float(), scale, eps)[0], inplace=True).to(x.dtype)
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
