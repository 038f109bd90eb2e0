"""Which arrays are images, and how their axes become [Y, X, channels]: one decision for env
adapters and for readers of files.

Knows numpy alone. A stack of images becomes one image with the channels of all of them: the first
image's channels come first, so a stack whose oldest image is first (Gymnasium's
``FrameStackObservation``) reads as our own ``frame_stack`` does.

Legend: Y and X are the sides of an image, C its channels, K the images of a stack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["MAX_CHANNELS", "MIN_IMAGE_SIDE", "ImageLayout", "find_image_layout"]

MIN_IMAGE_SIDE = 32
"""Sides that agents take; a matrix without channels is an image only if it is as large as this."""
MAX_CHANNELS = 16
COLOURS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How arrays of one shape are read as images.

    Attributes:
        native_shape: Shape of one array as its source gives it.
        axes: Its axes in the order Y, X, K, C, as far as it has them.
        frames: K; 1 where there is no stack.
        shape: What it becomes, ``(Y, X, K * C)``.
    """

    native_shape: tuple[int, ...]
    axes: tuple[int, ...]
    frames: int
    shape: tuple[int, int, int]

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """``[..., *native_shape]`` -> ``[..., *shape]``; a view where no stack has to be
        rearranged.
        """
        lead = value.ndim - len(self.native_shape)
        order = (*range(lead), *(lead + axis for axis in self.axes))
        return value.transpose(order).reshape(*value.shape[:lead], *self.shape)


def find_image_layout(shape: tuple[int, ...]) -> ImageLayout | None:
    """How an array of this shape is read if its dtype is that of images (uint8).

    Rank 2 is Y, X if both are large enough. Rank 3 is C, Y, X if the first axis is the small one,
    else Y, X, C. Rank 4 is K, Y, X, C or K, C, Y, X or Y, X, C, K, whichever has its two large axes
    where the sides are (Y, X, K, C if only its last axis can be the channels of an image).

    Returns:
        None for every other shape: its numbers are no image.

    Example:
        >>> find_image_layout((4, 64, 64, 3)).shape
        (64, 64, 12)
    """
    shape = tuple(int(size) for size in shape)
    if not math.prod(shape):
        return None
    if len(shape) == 2:
        return _layout(shape, (0, 1)) if min(shape) >= MIN_IMAGE_SIDE else None
    if len(shape) == 3:
        return _layout(shape, (1, 2, 0) if _is_channel_first(shape) else (0, 1, 2))
    if len(shape) == 4:
        return _stack_layout(shape)
    return None


def _is_channel_first(shape: tuple[int, ...]) -> bool:
    first, *sides = shape
    if first <= MAX_CHANNELS < min(sides):
        return True
    return first in COLOURS and first < min(sides) and shape[-1] not in COLOURS


def _stack_layout(shape: tuple[int, ...]) -> ImageLayout | None:
    for sides in ((1, 2), (2, 3), (0, 1)):
        few = [axis for axis in range(4) if axis not in sides]
        most = max(shape[axis] for axis in few)
        if most > MAX_CHANNELS or most >= min(shape[axis] for axis in sides):
            continue
        stack, channels = few
        if sides == (0, 1) and not (shape[3] in COLOURS and shape[2] not in COLOURS):
            channels, stack = few
        return _layout(shape, (*sides, stack, channels))
    return None


def _layout(shape: tuple[int, ...], axes: tuple[int, ...]) -> ImageLayout:
    frames = shape[axes[2]] if len(axes) == 4 else 1
    height, width, *rest = (shape[axis] for axis in axes)
    return ImageLayout(shape, axes, frames, (height, width, math.prod(rest)))
