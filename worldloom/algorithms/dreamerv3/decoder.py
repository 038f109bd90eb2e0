"""Latents to observations, and the reconstruction loss of each key.

Legend: N rows, D deter, Z flattened stoch, r/q coarse image height and width (canvas / 16), c
channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.config import MLP_LAYERS, DreamerSizes
from worldloom.algorithms.dreamerv3.encoder import CHANNELS
from worldloom.nn.conv import UpConv5x5, cells_to_map
from worldloom.nn.dense import BlockLinear, Dense, Head, Linear
from worldloom.nn.distributions import categorical_log_prob
from worldloom.nn.functional import symexp, symlog
from worldloom.nn.layout import ImageKey, ObsLayout, VectorKey, missing
from worldloom.nn.rmsnorm import RMSNorm, norm_silu

__all__ = ["Decoder", "ImageDecoder", "image_loss", "plain_image_loss", "vector_loss"]

CHUNK = 64
"""Images per pass of the image loss on a CPU: few enough for the cache."""


class ImageDecoder(nn.Module):
    """A spatial block-linear layer on deter plus an MLP on stoch, then four upsampling convolutions
    and a sigmoid.
    """

    def __init__(self, layout: ObsLayout, sizes: DreamerSizes) -> None:
        super().__init__()
        height, width = layout.canvas
        self.base = (height // 16, width // 16)
        self.groups = sizes.space_blocks
        self.channels = sizes.depth * CHANNELS[-1]
        area = self.base[0] * self.base[1] * self.channels
        self.space_deter = BlockLinear(sizes.deter, area, self.groups)
        self.stoch_hidden = Dense(sizes.latent, 2 * sizes.units)
        self.space_stoch = Linear(2 * sizes.units, area)
        self.space_norm = RMSNorm(self.channels)
        steps = [sizes.depth * m for m in reversed(CHANNELS)]
        self.convs = nn.ModuleList(UpConv5x5(i, o) for i, o in itertools.pairwise(steps))
        self.norms = nn.ModuleList(RMSNorm(o) for o in steps[1:])
        self.out = UpConv5x5(steps[-1], layout.channels)

    def space(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """The coarse map before its norm. [N, r, q, c]."""
        (rows, cols), n = self.base, len(deter)
        blocks = self.space_deter(deter).reshape(n, self.groups, rows, cols, -1)
        from_stoch: Tensor = self.space_stoch(self.stoch_hidden(stoch)).reshape(n, rows, cols, -1)
        from_deter: Tensor = blocks.permute(0, 2, 3, 1, 4).reshape(n, rows, cols, -1)
        return from_deter + from_stoch

    def cells(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Logits of the image in 2x2 cells. [N, H/2, W/2, 2, 2, C]."""
        x = norm_silu(self.space(deter, stoch), self.space_norm.scale).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = cells_to_map(norm_silu(conv(x), norm.get_parameter("scale")))
        cells: Tensor = self.out(x)
        return cells

    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Image canvas in [0, 1]. [N, C, H, W]."""
        return cells_to_map(torch.sigmoid(self.cells(deter, stoch).float()))


class Decoder(nn.Module):
    """Predicts every observation key from (deter, stoch)."""

    def __init__(
        self, layout: ObsLayout, sizes: DreamerSizes, mlp_layers: int = MLP_LAYERS
    ) -> None:
        super().__init__()
        self.layout = layout
        outputs = {key.name: key.width for key in layout.vectors}
        self.vec = (
            Head(sizes.feature, sizes.units, mlp_layers, outputs, outscale=1.0) if outputs else None
        )
        self.image = ImageDecoder(layout, sizes) if layout.images else None

    def raw(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """Network outputs per key: symlog values or logits [N, width] of vectors, [N, C, h, w] in
        [0, 1] of images.
        """
        raw: dict[str, Tensor] = {}
        if self.vec is not None:
            raw |= self.vec(torch.cat([stoch, deter], -1))
        if self.image is not None:
            canvas = self.image(deter, stoch)
            parts = torch.split(canvas, [key.channels for key in self.layout.images], 1)
            for key, part in zip(self.layout.images, parts, strict=True):
                raw[key.name] = part[:, :, : key.height, : key.width]
        return raw

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """Predictions in the units of the observation: numbers, probabilities of classes, images in
        [0, 1] (NCHW).
        """
        raw = self.raw(deter, stoch)
        for key in self.layout.vectors:
            parts = torch.split(raw[key.name], list(key.classes), -1) if key.classes else ()
            raw[key.name] = (
                torch.cat([p.softmax(-1) for p in parts], -1)
                if key.classes
                else symexp(raw[key.name])
            )
        return raw

    def losses(self, deter: Tensor, stoch: Tensor, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reconstruction loss per key [N]: squared error summed over dimensions or pixels (no
        factor 1/2), or cross-entropy.
        """
        if self.image is not None and self.layout.is_plain_image:
            key = self.layout.images[0]
            vectors = self.vec(torch.cat([stoch, deter], -1)) if self.vec is not None else {}
            losses = {
                key.name: plain_image_loss(key, self.image.cells(deter, stoch), obs[key.name])
            }
            return losses | {
                k.name: vector_loss(k, vectors[k.name], obs[k.name]) for k in self.layout.vectors
            }
        raw = self.raw(deter, stoch)
        losses = {
            key.name: vector_loss(key, raw[key.name], obs[key.name]) for key in self.layout.vectors
        }
        return losses | {
            key.name: image_loss(key, raw[key.name], obs[key.name]) for key in self.layout.images
        }


class _PlainImageLoss(torch.autograd.Function):
    """Sum of (sigmoid(cells) - image / 255)^2, with the derivative taken on the way: one map is
    kept instead of four.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, image: Tensor) -> Tensor:
        """Loss ``[N]`` of cells ``[N, H/2, W/2, 2, 2, C]`` against images ``[N, H, W, C]``, a part
        of the rows at a time.
        """
        rows, height, width, _, _, channels = cells.shape
        slope = torch.empty_like(cells, dtype=torch.float32)
        loss = []
        grid = image.view(rows, height, 2, width, 2, channels).transpose(2, 3)
        size = CHUNK if cells.device.type == "cpu" else rows
        for begin in range(0, rows, size):
            part = slice(begin, begin + size)
            predicted = torch.sigmoid(cells[part].float())
            error = predicted - grid[part] / 255
            loss.append(error.square().sum((1, 2, 3, 4, 5)))
            torch.mul(error.mul_(2), predicted.mul_(1 - predicted), out=slope[part])
        ctx.save_for_backward(slope)
        ctx.dtype = cells.dtype
        return torch.cat(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Derivative that :meth:`forward` kept, times the incoming gradient ``[N]``."""
        (slope,) = ctx.saved_tensors
        return (slope * grads[0].view(-1, 1, 1, 1, 1, 1)).to(ctx.dtype), None


def plain_image_loss(key: ImageKey, cells: Tensor, image: Tensor) -> Tensor:
    """:func:`image_loss` of a single image that fills the canvas, straight from the decoder's
    cells. [N].
    """
    image = image.movedim(1, -1) if key.channels_first else image
    loss: Tensor = _PlainImageLoss.apply(cells, image.contiguous())  # type: ignore[no-untyped-call]
    return loss


def vector_loss(key: VectorKey, raw: Tensor, value: Tensor) -> Tensor:
    """Squared error in symlog space, or cross-entropy of discrete components; 0 where the key is
    missing. [N].
    """
    flat = value.reshape(len(value), -1)
    absent = missing(flat).unsqueeze(-1)
    flat = flat.masked_fill(absent, 0)
    if not key.classes:
        return (raw - symlog(flat.float())).square().masked_fill(absent, 0.0).sum(-1)
    groups = torch.split(raw, list(key.classes), -1)
    logs = [
        categorical_log_prob(group.log_softmax(-1), flat[:, i]) for i, group in enumerate(groups)
    ]
    return -torch.stack(logs, -1).masked_fill(absent, 0.0).sum(-1)


def image_loss(key: ImageKey, predicted: Tensor, image: Tensor) -> Tensor:
    """Squared error of pixels in [0, 1], summed over the image. [N]."""
    return (predicted - key.pixels(image).float()).square().sum((1, 2, 3))
