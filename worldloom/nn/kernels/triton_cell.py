# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False
"""The kernels of the recurrent cell, in Triton: what ``definitions`` says, one launch each.
Imported only where a GPU is about to run them.

A program owns its rows or elements and nothing is added across programs, so equal inputs give equal
bits. Sizes of blocks follow from shapes alone; nothing is tuned while it runs. Legend: as in
``definitions``.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "gru_gates_gradient_kernel",
    "gru_gates_kernel",
    "norm_silu_gradient_kernel",
    "norm_silu_kernel",
    "one_hot_gradient_kernel",
    "sample_one_hot_kernel",
    "state_gradient_kernel",
]


@triton.jit
def _load(pointer, place, inside):
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _tanh(x):
    """By the series near zero, where the difference of exponentials would cancel."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    return tl.where(square < 0.01, series, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def norm_silu_kernel(
    x,
    scale,
    out,
    add,
    blocks,
    rows,
    width,
    x_group,
    x_row,
    out_group,
    out_row,
    add_row,
    blocks_group,
    blocks_row,
    eps,
    block: tl.constexpr,
    HAS_ADD: tl.constexpr,
    HAS_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (m, k): ROWS rows of group k. ``block`` features lie together in ``out``."""
    group = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    col = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (col < width)
    place = group * x_group + row * x_row + col
    value = _load(x, place, inside)
    if HAS_ADD:
        value += _load(add, row * add_row + col, inside)
    if HAS_BLOCKS:
        value += _load(
            blocks, (col // block) * blocks_group + row * blocks_row + col % block, inside
        )
    if HAS_ADD or HAS_BLOCKS:
        tl.store(x + place, value, mask=inside)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    z = value * inverse * _load(scale, group * width + col, col < width)
    to_block = group * (width // block) + col // block
    target = to_block * out_group + row * out_row + col % block
    tl.store(out + target, z * tl.sigmoid(z), mask=inside)


@triton.jit
def norm_silu_gradient_kernel(
    grad,
    x,
    scale,
    d_x,
    d_scale,
    rows,
    width,
    grad_group,
    grad_row,
    x_group,
    x_row,
    d_x_group,
    d_x_row,
    eps,
    block: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (m, k): ROWS rows of group k, and part m of its scale's gradient."""
    group = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    col = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (col < width)
    value = _load(x, group * x_group + row * x_row + col, inside)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    normed = value * inverse
    factor = _load(scale, group * width + col, col < width)
    z = normed * factor
    sigmoid = tl.sigmoid(z)
    from_block = group * (width // block) + col // block
    given = _load(grad, from_block * grad_group + row * grad_row + col % block, inside)
    dz = given * (sigmoid * (1 + z * (1 - sigmoid)))
    weighted = dz * factor
    shared = (tl.sum(weighted * normed, 1) / width)[:, None]
    d_value = (weighted - normed * shared) * inverse
    tl.store(d_x + group * d_x_group + row * d_x_row + col, d_value, mask=inside)
    part = (group * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * width
    one = tl.arange(0, WIDTH)
    total = tl.sum(dz * normed, 0)
    if SUMS:
        total += tl.load(d_scale + part + one, mask=one < width, other=0.0)
    tl.store(d_scale + part + one, total, mask=one < width)


@triton.jit
def _gates(pre, bias, start, bias_start, size, inside):
    """Reset, candidate, what it becomes, and update."""
    reset = tl.sigmoid(_load(pre, start, inside) + _load(bias, bias_start, inside))
    cand = _load(pre, start + size, inside) + _load(bias, bias_start + size, inside)
    update = _load(pre, start + 2 * size, inside) + _load(bias, bias_start + 2 * size, inside)
    return reset, cand, _tanh(reset * cand), tl.sigmoid(update - 1)


@triton.jit
def gru_gates_kernel(
    pre,
    bias,
    before,
    after,
    keep,
    masked,
    width,
    pre_group,
    pre_row,
    before_row,
    after_row,
    masked_row,
    size: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (n, m): WIDTH features of row n; ``size`` features a block."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = col < width
    start = (col // size) * pre_group + row * pre_row + col % size
    bias_start = (col // size) * 3 * size + col % size
    _, _, mixed, update = _gates(pre, bias, start, bias_start, size, inside)
    old = _load(before, row * before_row + col, inside)
    new = (old + update * (mixed - old)).to(after.dtype.element_ty)
    tl.store(after + row * after_row + col, new, mask=inside)
    if HAS_KEEP:
        kept = new.to(tl.float32) * tl.load(keep + row).to(tl.float32)
        tl.store(masked + row * masked_row + col, kept, mask=inside)


@triton.jit
def gru_gates_gradient_kernel(
    pre,
    bias,
    before,
    grad,
    carry,
    d_pre,
    width,
    pre_group,
    pre_row,
    before_row,
    grad_row,
    d_pre_group,
    d_pre_row,
    size: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (n, m): WIDTH features of row n."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = col < width
    start = (col // size) * pre_group + row * pre_row + col % size
    bias_start = (col // size) * 3 * size + col % size
    reset, cand, mixed, update = _gates(pre, bias, start, bias_start, size, inside)
    direct = row * width + col
    total = _load(carry, direct, inside) + _load(grad, row * grad_row + col, inside)
    kept = total * update
    d_mixed = kept * (1 - mixed * mixed)
    old = _load(before, row * before_row + col, inside)
    target = (col // size) * d_pre_group + row * d_pre_row + col % size
    tl.store(d_pre + target, d_mixed * cand * reset * (1 - reset), mask=inside)
    tl.store(d_pre + target + size, d_mixed * reset, mask=inside)
    tl.store(d_pre + target + 2 * size, kept * (mixed - old) * (1 - update), mask=inside)
    tl.store(carry + direct, total - kept, mask=inside)


@triton.jit
def state_gradient_kernel(
    carry,
    blocks,
    direct,
    keep,
    grad,
    width,
    blocks_group,
    blocks_row,
    direct_row,
    grad_row,
    size: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (n, m): WIDTH features of row n."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = col < width
    through = _load(carry, row * width + col, inside)
    through += _load(blocks, (col // size) * blocks_group + row * blocks_row + col % size, inside)
    through += _load(direct, row * direct_row + col, inside)
    kept = through * tl.load(keep + row).to(tl.float32)
    tl.store(carry + row * width + col, kept + _load(grad, row * grad_row + col, inside), inside)


@triton.jit
def _softmax(logits, place, inside, exists):
    """Over the last axis; classes that do not exist get 0."""
    value = tl.where(exists, _load(logits, place, inside), float("-inf"))
    raised = tl.exp(value - tl.max(value, 1)[:, None])
    return raised / tl.sum(raised, 1)[:, None]


@triton.jit
def sample_one_hot_kernel(
    logits,
    draws,
    hard,
    classes,
    keep,
    masked,
    total,
    logits_row,
    draws_row,
    hard_row,
    masked_row,
    unimix,
    groups: tl.constexpr,
    count: tl.constexpr,
    DRAWS: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Program m: ROWS of all ``total`` categoricals, ``groups`` of each row, ``count`` classes."""
    item = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = item < total
    row = (item // groups).to(tl.int64)
    group = item % groups
    kind = tl.arange(0, COUNT)[None, :]
    inside = exists[:, None] & (kind < count)
    draw = tl.load(draws + row * draws_row + group, mask=exists, other=0)
    if DRAWS:
        place = (row * logits_row + group * count)[:, None] + kind
        probs = _softmax(logits, place, inside, kind < count)
        probs = tl.where(inside, probs * (1.0 - unimix) + unimix / count, 0.0)
        below = (tl.cumsum(probs, 1) <= draw[:, None]) & (kind < count - 1)
        chosen = tl.sum(below.to(tl.int32), 1)
    else:
        chosen = draw.to(tl.int32)
    tl.store(classes + item, chosen.to(tl.int64), mask=exists)
    code = (kind == chosen[:, None]).to(tl.float32)
    tl.store(hard + (row * hard_row + group * count)[:, None] + kind, code, mask=inside)
    if HAS_KEEP:
        kept = code * tl.load(keep + row, mask=exists, other=0.0).to(tl.float32)[:, None]
        tl.store(masked + (row * masked_row + group * count)[:, None] + kind, kept, mask=inside)


@triton.jit
def one_hot_gradient_kernel(
    logits,
    grad,
    carried,
    keep,
    direct,
    out,
    total,
    logits_row,
    grad_row,
    carried_row,
    direct_row,
    out_row,
    unimix,
    groups: tl.constexpr,
    count: tl.constexpr,
    HAS_CARRIED: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Program m: ROWS of all ``total`` categoricals."""
    item = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = item < total
    row = (item // groups).to(tl.int64)
    kind = tl.arange(0, COUNT)[None, :]
    inside = exists[:, None] & (kind < count)
    first = ((item % groups) * count)[:, None] + kind
    line = row[:, None]
    value = _load(grad, line * grad_row + first, inside)
    if HAS_CARRIED:
        kept = tl.load(keep + row, mask=exists, other=0.0).to(tl.float32)[:, None]
        value += kept * _load(carried, line * carried_row + first, inside)
    soft = _softmax(logits, line * logits_row + first, inside, kind < count)
    value = value * (1.0 - unimix)
    inner = (value - tl.sum(value * soft, 1)[:, None]) * soft
    whole = inner + _load(direct, line * direct_row + first, inside)
    tl.store(out + line * out_row + first, whole, mask=inside)
