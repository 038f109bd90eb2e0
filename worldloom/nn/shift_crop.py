"""Images for convolution stacks of a fixed input size: axis order, size, and the random shift
augmentation.

Shape legend: R images, C channels, Y height, X width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.core.exceptions import ConfigurationError

__all__ = ["SHIFT_PAD", "channel_axis", "resize", "shift_crop"]

SHIFT_PAD = 3
"""Pixels of edge replication around an image; shifts are integers in 0..2*SHIFT_PAD."""


def channel_axis(shape: tuple[int, ...]) -> int:
    """Which axis of a rank-3 image shape holds the channels: 0 (CHW) if the first is the smaller
    end, otherwise 2 (HWC).

    Raises:
        ConfigurationError: If there would be as many channels as rows or columns: the other end may
            be the channels as well.
    """
    axis = 0 if shape[0] < shape[2] else 2
    sides = [side for place, side in enumerate(shape) if place != axis]
    if shape[axis] >= min(sides):
        raise ConfigurationError(
            f"an image must have fewer channels than rows and columns, got {tuple(shape)}, whose "
            "channels may be on either end; use larger images (image_size) or stack fewer of them "
            "(frame_stack)"
        )
    return axis


def resize(images: Tensor, size: int) -> Tensor:
    """[R, C, Y, X] of any size -> float [R, C, size, size], bilinear with antialiasing; unchanged
    if the size fits.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )


def shift_crop(images: Tensor, shift: Tensor) -> Tensor:
    """Pad each image by edge replication and crop it again at an offset of its own (DrQ,
    arXiv:2004.13649).

    Args:
        images: [R, C, Y, X], any dtype.
        shift: [R, 2] integers in 0..2*SHIFT_PAD, x first; SHIFT_PAD leaves the image where it is.

    Returns:
        [R, C, Y, X].
    """
    rows, _, height, width = images.shape
    device = images.device
    # [R, Y]
    y = (torch.arange(height, device=device) + shift[:, 1:] - SHIFT_PAD).clamp_(0, height - 1)
    # [R, X]
    x = (torch.arange(width, device=device) + shift[:, :1] - SHIFT_PAD).clamp_(0, width - 1)
    picked = images.movedim(1, -1)[
        torch.arange(rows, device=device)[:, None, None], y[:, :, None], x[:, None, :]
    ]
    return picked.movedim(-1, 1)
