"""Images inside an exported policy, as the env's wrappers treat them: resized, grey, stacked.

Resizing is exact. A grey value is a sum of three floats that is cut to a whole number, and the
order of the sum is the library's: one pixel of thousands may be one level off.

Legend: N rows, Y/X sides, C channels, K images of a stack.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.core.images import ImageLayout
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.wrappers import LUMA

__all__ = ["Picture"]

PILLOW_BITS = 22
"""Binary places of the weights with which Pillow resizes 8-bit images."""


class Picture(nn.Module):
    """One image key: from the env's own layout to what the agent was trained on.

    Args:
        layout: How the env's array is read.
        config: Resolved settings of the env.

    Attributes:
        spec: What it becomes.
        stacked: Images that are kept from decision to decision; 1 keeps none.
        frame: One of them.
    """

    def __init__(self, layout: ImageLayout, config: EnvConfig) -> None:
        super().__init__()
        self.layout = layout
        height, width, channels = layout.shape
        size = config.image_size
        self.resize: _Resize | None = None
        if size is not None and (height, width) != (size, size):
            self.resize = _Resize(height, width, size)
            height = width = size
        self.is_gray = bool(config.grayscale) and channels // layout.frames == 3
        channels = layout.frames if self.is_gray else channels
        self.register_buffer("luma", torch.from_numpy(LUMA.copy()))
        self.stacked = config.frame_stack or 1
        self.frame = ArraySpec((height, width, channels), "uint8")
        self.spec = ArraySpec((height, width, channels * self.stacked), "uint8")

    def forward(
        self, value: Tensor, kept: Tensor | None, is_first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """``[N, *native]`` uint8 and, where images are stacked, ``[N, K, Y, X, C]`` kept ones and
        ``[N]`` bool -> ``[N, *spec.shape]`` and the images to keep.
        """
        axes = [0, *(1 + axis for axis in self.layout.axes)]
        image = value.permute(axes).reshape(-1, *self.layout.shape)
        if self.resize is not None:
            image = self.resize(image)
        if self.is_gray:
            image = self._gray(image)
        if kept is None or is_first is None:
            return image, None
        newest = image.unsqueeze(1)
        moved = torch.cat([kept[:, 1:], newest], 1)
        stack = torch.where(is_first[:, None, None, None, None], newest.expand_as(moved), moved)
        return stack.permute(0, 2, 3, 1, 4).reshape(-1, *self.spec.shape), stack

    def _gray(self, image: Tensor) -> Tensor:
        colours = image.reshape(*image.shape[:3], -1, 3).float()
        luma = self.luma
        assert isinstance(luma, Tensor)
        return (colours @ luma).to(torch.uint8)


class _Resize(nn.Module):
    """Bilinear with antialiasing by Pillow's own arithmetic, so that every pixel is equal: columns
    first, rounded to 8 bits, then rows.
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(_weights(width, size)))
        self.register_buffer("rows", torch.from_numpy(_weights(height, size)))

    def forward(self, image: Tensor) -> Tensor:
        """[N, Y, X, C] uint8 -> [N, size, size, C] uint8."""
        columns, rows = self.columns, self.rows
        assert isinstance(columns, Tensor)
        assert isinstance(rows, Tensor)
        planes = image.permute(0, 3, 1, 2).double()
        if columns.shape[0] != columns.shape[1]:
            planes = _rounded(planes @ columns.t())
        if rows.shape[0] != rows.shape[1]:
            planes = _rounded(rows @ planes)
        return planes.permute(0, 2, 3, 1).to(torch.uint8)


def _rounded(total: Tensor) -> Tensor:
    """Sums of pixels times whole weights as pixels; doubles hold both exactly."""
    return torch.floor(total / 2.0**PILLOW_BITS + 0.5).clamp(0.0, 255.0)


def _weights(before: int, after: int) -> np.ndarray:
    """Pillow's triangle filter as a matrix [after, before] of whole numbers."""
    scale = before / after
    reach = max(scale, 1.0)
    found = np.zeros((after, before))
    for index in range(after):
        centre = (index + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), before)
        places = np.arange(first, last)
        weight = np.maximum(0.0, 1.0 - np.abs((places - centre + 0.5) / reach))
        found[index, first:last] = weight / weight.sum()
    return np.floor(found * math.ldexp(1.0, PILLOW_BITS) + 0.5)
