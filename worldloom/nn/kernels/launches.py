# mypy: disallow-untyped-calls=False
"""Each kernel with its grid: the same names and arguments as in ``definitions``. Imports Triton.

Tensors may be views; only their last axis must be contiguous.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from worldloom.nn.kernels import triton_cell, triton_losses
from worldloom.nn.kernels.grids import (
    ELEMENTS,
    categoricals_per_program,
    cdiv,
    next_power_of_2,
    rows_per_program,
    warps,
)

__all__ = [
    "gru_gates",
    "gru_gates_gradient",
    "lambda_returns",
    "laprop",
    "norm_silu",
    "norm_silu_gradient",
    "one_hot_gradient",
    "sample_one_hot",
    "state_gradient",
    "two_hot_weights",
]


def norm_silu(
    x: Tensor, scale: Tensor, out: Tensor, add: Tensor | None, blocks: Tensor | None, eps: float
) -> None:
    """See ``definitions.norm_silu``."""
    groups, rows, width = x.shape
    wide = next_power_of_2(width)
    tall = rows_per_program(rows, wide)
    with _on(x):
        triton_cell.norm_silu_kernel[cdiv(rows, tall), groups](
            x,
            scale,
            out,
            x if add is None else add,
            x if blocks is None else blocks,
            rows,
            width,
            *x.stride()[:2],
            *out.stride()[:2],
            0 if add is None else add.stride(0),
            *((0, 0) if blocks is None else blocks.stride()[:2]),
            eps,
            block=out.shape[2],
            HAS_ADD=add is not None,
            HAS_BLOCKS=blocks is not None,
            ROWS=tall,
            WIDTH=wide,
            num_warps=warps(tall * wide),
        )


def norm_silu_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, d_x: Tensor, d_scale: Tensor, eps: float, sums: bool
) -> None:
    """See ``definitions.norm_silu_gradient``."""
    groups, rows, width = x.shape
    parts = d_scale.shape[1]
    wide = next_power_of_2(width)
    tall = next_power_of_2(cdiv(rows, parts))
    with _on(x):
        triton_cell.norm_silu_gradient_kernel[parts, groups](
            grad,
            x,
            scale,
            d_x,
            d_scale,
            rows,
            width,
            *grad.stride()[:2],
            *x.stride()[:2],
            *d_x.stride()[:2],
            eps,
            block=grad.shape[2],
            SUMS=sums,
            ROWS=tall,
            WIDTH=wide,
            num_warps=warps(tall * wide),
        )


def gru_gates(
    pre: Tensor,
    bias: Tensor,
    before: Tensor,
    after: Tensor,
    keep: Tensor | None,
    masked: Tensor | None,
) -> None:
    """See ``definitions.gru_gates``."""
    rows, width = before.shape
    wide = min(ELEMENTS, next_power_of_2(width))
    with _on(pre):
        triton_cell.gru_gates_kernel[rows, cdiv(width, wide)](
            pre,
            bias,
            before,
            after,
            before if keep is None else keep,
            before if masked is None else masked,
            width,
            *pre.stride()[:2],
            before.stride(0),
            after.stride(0),
            0 if masked is None else masked.stride(0),
            size=pre.shape[2] // 3,
            HAS_KEEP=keep is not None,
            WIDTH=wide,
            num_warps=warps(wide),
        )


def gru_gates_gradient(
    pre: Tensor, bias: Tensor, before: Tensor, grad: Tensor, carry: Tensor, d_pre: Tensor
) -> None:
    """See ``definitions.gru_gates_gradient``."""
    rows, width = before.shape
    wide = min(ELEMENTS, next_power_of_2(width))
    with _on(pre):
        triton_cell.gru_gates_gradient_kernel[rows, cdiv(width, wide)](
            pre,
            bias,
            before,
            grad,
            carry,
            d_pre,
            width,
            *pre.stride()[:2],
            before.stride(0),
            grad.stride(0),
            *d_pre.stride()[:2],
            size=pre.shape[2] // 3,
            WIDTH=wide,
            num_warps=warps(wide),
        )


def state_gradient(
    carry: Tensor, blocks: Tensor, direct: Tensor, keep: Tensor, grad: Tensor
) -> None:
    """See ``definitions.state_gradient``."""
    rows, width = carry.shape
    wide = min(ELEMENTS, next_power_of_2(width))
    with _on(carry):
        triton_cell.state_gradient_kernel[rows, cdiv(width, wide)](
            carry,
            blocks,
            direct,
            keep,
            grad,
            width,
            *blocks.stride()[:2],
            direct.stride(0),
            grad.stride(0),
            size=blocks.shape[2],
            WIDTH=wide,
            num_warps=warps(wide),
        )


def sample_one_hot(
    logits: Tensor,
    draws: Tensor,
    unimix: float,
    hard: Tensor,
    classes: Tensor,
    keep: Tensor | None,
    masked: Tensor | None,
) -> None:
    """See ``definitions.sample_one_hot``."""
    rows, groups, count = logits.shape
    tall = categoricals_per_program(count)
    with _on(logits):
        triton_cell.sample_one_hot_kernel[(cdiv(rows * groups, tall),)](
            logits,
            draws,
            hard,
            classes,
            hard if keep is None else keep,
            hard if masked is None else masked,
            rows * groups,
            logits.stride(0),
            draws.stride(0),
            hard.stride(0),
            0 if masked is None else masked.stride(0),
            unimix,
            groups=groups,
            count=count,
            DRAWS=draws.is_floating_point(),
            HAS_KEEP=keep is not None,
            ROWS=tall,
            COUNT=next_power_of_2(count),
            num_warps=warps(tall * next_power_of_2(count)),
        )


def one_hot_gradient(
    logits: Tensor,
    grad: Tensor,
    carried: Tensor | None,
    keep: Tensor | None,
    direct: Tensor,
    unimix: float,
    out: Tensor,
) -> None:
    """See ``definitions.one_hot_gradient``."""
    rows, groups, count = logits.shape
    tall = categoricals_per_program(count)
    with _on(logits):
        triton_cell.one_hot_gradient_kernel[(cdiv(rows * groups, tall),)](
            logits,
            grad,
            grad if carried is None else carried,
            grad if keep is None else keep,
            direct,
            out,
            rows * groups,
            logits.stride(0),
            grad.stride(0),
            0 if carried is None else carried.stride(0),
            direct.stride(0),
            out.stride(0),
            unimix,
            groups=groups,
            count=count,
            HAS_CARRIED=carried is not None,
            ROWS=tall,
            COUNT=next_power_of_2(count),
            num_warps=warps(tall * next_power_of_2(count)),
        )


def lambda_returns(base: Tensor, keep: Tensor, boot: Tensor, out: Tensor) -> None:
    """See ``definitions.lambda_returns``."""
    rows, steps = out.shape
    tall = 128
    with _on(base):
        triton_losses.lambda_returns_kernel[(cdiv(rows, tall),)](
            base,
            keep,
            boot,
            out,
            rows,
            *base.stride(),
            *keep.stride(),
            boot.stride(0),
            STEPS=steps,
            ROWS=tall,
            num_warps=4,
        )


def two_hot_weights(value: Tensor, bins: Tensor, index: Tensor, weight: Tensor) -> None:
    """See ``definitions.two_hot_weights``."""
    wide = next_power_of_2(len(bins))
    tall = max(1, 4096 // wide)
    with _on(value):
        triton_losses.two_hot_kernel[(cdiv(len(value), tall),)](
            value,
            bins,
            index,
            weight,
            len(value),
            len(bins),
            ROWS=tall,
            COUNT=wide,
            num_warps=warps(tall * wide),
        )


def laprop(
    grad: Tensor,
    mean_square: Tensor,
    momentum: Tensor,
    ratio: Tensor,
    part: Tensor,
    start: Tensor,
    stop: Tensor,
    rates: Tensor,
    eps: float,
    size: int,
) -> None:
    """See ``definitions.laprop``."""
    with _on(grad):
        triton_losses.laprop_kernel[(len(part),)](
            grad,
            mean_square,
            momentum,
            ratio,
            part,
            start,
            stop,
            rates,
            eps,
            SIZE=size,
            num_warps=warps(size),
        )


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device's stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
