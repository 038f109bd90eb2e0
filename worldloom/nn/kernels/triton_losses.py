# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False
"""The kernels of returns, their targets and the optimizer, in Triton; see ``triton_cell``."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["lambda_returns_kernel", "laprop_kernel", "two_hot_kernel"]


@triton.jit
def lambda_returns_kernel(
    base,
    keep,
    boot,
    out,
    rows,
    base_row,
    base_step,
    keep_row,
    keep_step,
    boot_row,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program m: ROWS rows, step by step from the last."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    last = tl.load(boot + row * boot_row, mask=inside, other=0.0)
    for back in range(STEPS):
        t = STEPS - back
        last = tl.load(base + row * base_row + t * base_step, mask=inside, other=0.0) + last * (
            tl.load(keep + row * keep_row + t * keep_step, mask=inside, other=0.0)
        )
        tl.store(out + row * STEPS + t - 1, last, mask=inside)


@triton.jit
def two_hot_kernel(
    value, bins, index, weight, rows, count, ROWS: tl.constexpr, COUNT: tl.constexpr
):
    """Program m: ROWS values against all bins at once."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    kind = tl.arange(0, COUNT)[None, :]
    x = tl.load(value + row, mask=inside, other=0.0)
    edge = tl.load(bins + kind, mask=kind < count, other=float("inf"))
    above = tl.sum(((edge <= x[:, None]) & (kind < count)).to(tl.int32), 1)
    above = tl.where(x == x, above, count)  # as torch.searchsorted has a NaN
    low = tl.maximum(above - 1, 0)
    high = tl.minimum(above, count - 1)
    one = tl.where(tl.abs(x) < float("inf"), 1.0, float("nan"))
    same = low == high
    to_low = tl.where(same, one, tl.abs(tl.load(bins + low, mask=inside, other=0.0) - x))
    to_high = tl.where(same, one, tl.abs(tl.load(bins + high, mask=inside, other=0.0) - x))
    whole = tl.where(inside, to_low + to_high, 1.0)
    tl.store(index + 2 * row, low.to(tl.int64), mask=inside)
    tl.store(index + 2 * row + 1, high.to(tl.int64), mask=inside)
    tl.store(weight + 2 * row, to_high / whole, mask=inside)
    tl.store(weight + 2 * row + 1, to_low / whole, mask=inside)


@triton.jit
def laprop_kernel(
    grad, mean_square, momentum, ratio, part, start, stop, rates, eps, SIZE: tl.constexpr
):
    """Program m: up to SIZE elements of one tensor."""
    program = tl.program_id(0)
    place = tl.load(start + program) + tl.arange(0, SIZE)
    inside = place < tl.load(stop + program)
    divisor = tl.load(ratio + tl.load(part + program))
    on = tl.load(rates)
    square_rate = tl.load(rates + 1)
    mean_rate = tl.load(rates + 2)
    g = tl.load(grad + place, mask=inside, other=0.0) / divisor
    g = tl.where(on > 0, g, 0.0)
    square = tl.load(mean_square + place, mask=inside, other=0.0)
    square += (g * g - square) * square_rate
    mean = tl.load(momentum + place, mask=inside, other=0.0)
    mean += (g / (tl.sqrt(square) * tl.load(rates + 3) + eps) - mean) * mean_rate
    tl.store(mean_square + place, square, mask=inside)
    tl.store(momentum + place, mean, mask=inside)
    tl.store(grad + place, mean * tl.load(rates + 4), mask=inside)
