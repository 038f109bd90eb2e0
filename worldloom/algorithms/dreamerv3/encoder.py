"""Observations to tokens: an MLP over symlog'ed vectors and a convolution tower over images, side
by side. Stateless.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.config import MLP_LAYERS, LatentSizes
from worldloom.nn.conv import CHANNELS, ConvTower
from worldloom.nn.dense import MLP
from worldloom.nn.layout import ObsLayout

__all__ = ["CHANNELS", "ConvTower", "Encoder"]


class Encoder(nn.Module):
    """Tokens = [vector branch, image branch]; a branch without keys does not exist."""

    def __init__(self, layout: ObsLayout, sizes: LatentSizes, mlp_layers: int = MLP_LAYERS) -> None:
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
