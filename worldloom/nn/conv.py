"""Convolution stages of DreamerV3: 5x5 with pooling on the way down, nearest upsampling and 5x5 on the way up.

Maps are NCHW tensors in channels-last memory, so that the norm over channels reads contiguous memory. Legend: N rows, I/O
channels in and out, H/W sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.nn.dense import init_kernel

__all__ = ["Conv5x5", "UpConv5x5", "cells_to_map"]

KERNEL = 5


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


class UpConv5x5(Conv5x5):
    """The same after nearest-neighbour upsampling by 2, at 36 % of the multiplications.

    Each of the four pixels of an upsampled 2x2 cell sees only 3x3 distinct inputs, so the 5x5 kernel folds into four 3x3
    kernels, applied to the small map. The result is equal up to the order of additions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> cells [N, H, W, 2, 2, O], where (y, x) of the last axes but one is the pixel within the cell."""
        fold = FOLD.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            kernel = torch.einsum("pay,qbx,oiyx->pqoiab", fold, fold, self.weight)
        kernel = kernel.reshape(-1, *kernel.shape[3:]).contiguous(memory_format=torch.channels_last)
        cells = functional.conv2d(x, kernel, self.bias.repeat(4), padding=1)
        n, _, height, width = cells.shape
        return cells.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, -1)


def cells_to_map(cells: Tensor) -> Tensor:
    """[N, H, W, 2, 2, O] -> [N, O, 2H, 2W] in channels-last memory."""
    n, height, width, _, _, channels = cells.shape
    return cells.transpose(2, 3).reshape(n, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _fold() -> Tensor:
    """fold[p, a, y] = 1 if row y of the 5-row kernel, centred on pixel p of a cell, reads row a of the 3 coarse rows."""
    fold = torch.zeros(2, 3, KERNEL)
    for pixel in range(2):
        for row in range(KERNEL):
            fold[pixel, (pixel + row - 2) // 2 + 1, row] = 1.0
    return fold


FOLD = _fold()
