"""Convolution stages of DreamerV3: 5x5 with pooling on the way down, nearest upsampling and 5x5 on
the way up.

Maps are NCHW tensors in channels-last memory, so that the norm over channels reads contiguous
memory. Legend: N rows, I/O channels in and out, H/W sides.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.nn.dense import init_kernel
from worldloom.nn.rmsnorm import RMSNorm, norm_silu

__all__ = [
    "CHANNELS",
    "Conv5x5",
    "ConvTower",
    "PooledConv5x5",
    "UpConv5x5",
    "cells_to_map",
    "chunks",
    "corners",
    "place_gradient",
    "pool_gradient",
]

CHANNELS = (2, 3, 4, 4)
"""Channels per stage in units of ``depth``."""
KERNEL = 5
CHUNK_ELEMENTS = 2**20


class Conv5x5(nn.Module):
    """Stride-1 cross-correlation with padding 2 and bias. [N, I, H, W] -> [N, O, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(outputs))
        init_kernel(self.weight, inputs * KERNEL * KERNEL)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return functional.conv2d(x, self.weight, self.bias, padding=2)


class PooledConv5x5(Conv5x5):
    """The same followed by 2x2 max-pooling, in chunks of rows: the large map before the pooling
    never exists as a whole.

    What is kept for the derivative is one byte per pooled value, which of the four pixels it came
    from. ``forward`` of the base class is :meth:`convolve` here.
    """

    def convolve(self, x: Tensor) -> Tensor:
        """The map before pooling. [N, I, H, W] -> [N, O, H, W]."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H/2, W/2]; H and W even."""
        if not torch.is_grad_enabled():
            return functional.max_pool2d(self.convolve(x), 2)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        weight = self.weight.to(dtype, memory_format=torch.channels_last)
        result: Tensor = _ConvPool.apply(x.to(dtype), weight, self.bias.to(dtype))  # type: ignore[no-untyped-call]
        return result


class _ConvPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve and pool a part of the rows at a time; keep which of four neighbours was the
        largest.
        """
        rows, _, height, width = x.shape
        out = torch.empty(
            rows,
            len(weight),
            height // 2,
            width // 2,
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        codes = torch.empty_like(out, dtype=torch.uint8)
        corner = corners(height, width, x.device)
        for part in chunks(x, len(weight)):
            large = functional.conv2d(x[part], weight, bias, padding=2)
            out[part], index = functional.max_pool2d_with_indices(large, [2, 2])
            offset = index.sub_(corner)
            codes[part] = (offset & 1) + 2 * (offset >= width)
        ctx.save_for_backward(x, weight, codes)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradient goes to the largest of four neighbours, then back through the convolution, a
        part of the rows at a time.
        """
        x, weight, codes = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        d_x = torch.empty_like(x) if wants_x else None
        d_weight = torch.zeros_like(weight)
        d_bias = torch.zeros_like(weight[:, 0, 0, 0])
        height, width = x.shape[2:]
        corner = corners(height, width, x.device) if x.device.type == "cpu" else None
        for part in chunks(x, len(weight)):
            d_large = (
                place_gradient(grads[0][part], codes[part])
                if corner is None
                else pool_gradient(grads[0][part], codes[part], corner)
            )
            parts = torch.ops.aten.convolution_backward(
                d_large,
                x[part],
                weight,
                [len(weight)],
                [1, 1],
                [2, 2],
                [1, 1],
                False,
                [0, 0],
                1,
                [wants_x, True, True],
            )
            if d_x is not None:
                d_x[part] = parts[0]
            d_weight += parts[1]
            d_bias += parts[2]
        return d_x, d_weight, d_bias


def pool_gradient(grad: Tensor, codes: Tensor, corner: Tensor) -> Tensor:
    """Gradient [N, O, H, W] of a map from that of its 2x2 maxima: torch's kernel, the fast one on a
    CPU.

    Args:
        grad: [N, O, H/2, W/2].
        codes: The same shape, uint8: which pixel of its cell was the largest, x + 2 y.
        corner: From :func:`corners`.
    """
    code = codes.long()
    rows, outputs, height, width = grad.shape
    index = corner + (code >> 1) * (2 * width) + (code & 1)
    large = torch.empty(
        rows,
        outputs,
        2 * height,
        2 * width,
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last,
    )
    return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
        grad, large, [2, 2], [2, 2], [0, 0], [1, 1], False, index
    )


def place_gradient(grad: Tensor, codes: Tensor) -> Tensor:
    """The same by choosing, in two kernels and without additions whose order could change."""
    rows, outputs, height, width = grad.shape
    pixel = torch.arange(4, device=grad.device, dtype=torch.uint8).view(2, 1, 2, 1)
    code, cell = (t.permute(0, 2, 3, 1)[:, :, None, :, None] for t in (codes, grad))
    d_large = torch.where(code == pixel, cell, 0.0)
    return d_large.reshape(rows, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)


def corners(height: int, width: int, device: torch.device) -> Tensor:
    """Flat index of the upper left pixel of each 2x2 cell. [height / 2, width / 2]."""
    y, x = (torch.arange(0, side, 2, device=device) for side in (height, width))
    return y.unsqueeze(1) * width + x


def chunks(x: Tensor, outputs: int) -> list[slice]:
    """Slices of rows: on a CPU few enough that one chunk's map stays in the cache, on an
    accelerator all of them.
    """
    rows, _, height, width = x.shape
    size = max(1, CHUNK_ELEMENTS // (outputs * height * width)) if x.device.type == "cpu" else rows
    return [slice(begin, begin + size) for begin in range(0, rows, size)]


class ConvTower(nn.Module):
    """Four stages of conv 5x5 -> 2x2 max-pool -> RMSNorm over channels -> SiLU."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        sizes = [channels, *(depth * m for m in CHANNELS)]
        self.convs = nn.ModuleList(PooledConv5x5(i, o) for i, o in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(RMSNorm(o) for o in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, H/16 * W/16 * 4 depth], flattened in H, W, channel order."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm_silu(conv(x).permute(0, 2, 3, 1), norm.get_parameter("scale")).permute(
                0, 3, 1, 2
            )
        return x.permute(0, 2, 3, 1).flatten(1)


class UpConv5x5(Conv5x5):
    """The same after nearest-neighbour upsampling by 2, at 36 % of the multiplications.

    Each of the four pixels of an upsampled 2x2 cell sees only 3x3 distinct inputs, so the 5x5
    kernel folds into four 3x3 kernels, applied to the small map. The result is equal up to the
    order of additions.
    """

    fold: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("fold", _fold(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> cells [N, H, W, 2, 2, O], where (y, x) of the last axes but one is the
        pixel within the cell.
        """
        with torch.autocast(x.device.type, enabled=False):
            kernel = torch.einsum("pay,qbx,oiyx->pqoiab", self.fold, self.fold, self.weight)
        kernel = kernel.reshape(-1, *kernel.shape[3:]).contiguous(memory_format=torch.channels_last)
        cells = functional.conv2d(x, kernel, self.bias.repeat(4), padding=1)
        n, _, height, width = cells.shape
        return cells.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, -1)


def cells_to_map(cells: Tensor) -> Tensor:
    """[N, H, W, 2, 2, O] -> [N, O, 2H, 2W] in channels-last memory."""
    n, height, width, _, _, channels = cells.shape
    return cells.transpose(2, 3).reshape(n, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _fold() -> Tensor:
    """fold[p, a, y] = 1 if row y of the 5-row kernel, centred on pixel p of a cell, reads row a of
    the 3 coarse rows.
    """
    fold = torch.zeros(2, 3, KERNEL)
    for pixel in range(2):
        for row in range(KERNEL):
            fold[pixel, (pixel + row - 2) // 2 + 1, row] = 1.0
    return fold
