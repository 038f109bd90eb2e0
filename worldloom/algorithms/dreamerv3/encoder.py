"""Observations to tokens: an MLP over symlog'ed vectors and a convolution tower over images, side
by side. Stateless.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.config import MLP_LAYERS, DreamerSizes
from worldloom.algorithms.dreamerv3.layout import ObsLayout
from worldloom.nn.conv import PooledConv5x5
from worldloom.nn.dense import MLP
from worldloom.nn.rmsnorm import RMSNorm, norm_silu

__all__ = ["CHANNELS", "Encoder"]

CHANNELS = (2, 3, 4, 4)
"""Channels per stage in units of ``depth``."""


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


class Encoder(nn.Module):
    """Tokens = [vector branch, image branch]; a branch without keys does not exist."""

    def __init__(
        self, layout: ObsLayout, sizes: DreamerSizes, mlp_layers: int = MLP_LAYERS
    ) -> None:
        super().__init__()
        self.layout = layout
        height, width = layout.canvas
        self.mlp = MLP(layout.vector_width, sizes.units, mlp_layers) if layout.vectors else None
        self.cnn = ConvTower(layout.channels, sizes.depth) if layout.images else None
        image_width = (height // 16) * (width // 16) * sizes.depth * CHANNELS[-1]
        self.width = (sizes.units if layout.vectors else 0) + image_width

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Raw observations per key ``[N, ...]`` -> tokens [N, width]."""
        parts = []
        if self.mlp is not None:
            parts.append(self.mlp(self.layout.vector(obs)))
        if self.cnn is not None:
            parts.append(self.cnn(self.layout.image(obs)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
