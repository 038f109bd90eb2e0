"""DreamerV3's building blocks: truncated-normal linear layers, block-diagonal linear layers, dense
layers and MLPs.

A *dense layer* is linear -> RMSNorm -> SiLU. Shape legend: I inputs, O outputs, G blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.nn.rmsnorm import RMSNorm, norm_silu

__all__ = ["MLP", "BlockLinear", "Dense", "Head", "Linear", "init_kernel", "linear_rows"]

UNIT_STD = 1.1368
"""A standard normal cut at +-2 has standard deviation 1 / 1.1368."""


@torch.no_grad()
def init_kernel(kernel: Tensor, fan_in: int, outscale: float = 1.0) -> None:
    """Fill with outscale * sqrt(1 / fan_in) * (normal cut at two standard deviations, rescaled to
    unit variance).
    """
    if kernel.is_meta:
        return
    nn.init.trunc_normal_(kernel, std=1.0, a=-2.0, b=2.0)
    kernel.mul_(UNIT_STD * outscale / math.sqrt(fan_in))


class Linear(nn.Linear):
    """``nn.Linear`` with DreamerV3's initialiser: zero bias, truncated normal kernel times
    ``outscale``.
    """

    def __init__(
        self, inputs: int, outputs: int, *, outscale: float = 1.0, bias: bool = True
    ) -> None:
        self.outscale = outscale
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        """Draw the kernel again and clear the bias."""
        init_kernel(self.weight, self.in_features, self.outscale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: input slice k is mapped to output slice k by its own kernel.

    The initialiser divides by the *total* number of inputs, blocks x inputs per block, as the
    official code does; weights are therefore sqrt(blocks) smaller than a per-block rule would give.

    Args:
        inputs, outputs: Total sizes; both divisible by ``blocks``.
        blocks: G.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.kernel = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        init_kernel(self.kernel, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I] -> [N, O]."""
        kernel = self.kernel.to(x.dtype)
        parts = torch.bmm(x.reshape(len(x), self.blocks, -1).transpose(0, 1), kernel)
        return parts.transpose(0, 1).reshape(len(x), -1) + self.bias.to(x.dtype)


class Dense(nn.Module):
    """Linear -> RMSNorm -> SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = RMSNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return norm_silu(self.linear(x), self.norm.scale)


class MLP(nn.Module):
    """``layers`` dense layers of equal width."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs] + [units] * (layers - 1)
        self.layers = nn.ModuleList(Dense(size, units) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., units]."""
        for layer in self.layers:
            x = layer(x)
        return x

    def after_first(self, first: Tensor) -> Tensor:
        """Continue from the first linear layer's output, for callers who compute several heads'
        first layers at once.
        """
        x = norm_silu(first, self.layers[0].norm.scale)  # type: ignore[union-attr,arg-type]
        for layer in self.layers[1:]:
            x = layer(x)
        return x


class Head(nn.Module):
    """MLP followed by one linear layer per output.

    Args:
        inputs: Width of the input.
        units, layers: Of the MLP.
        outputs: Name -> width.
        outscale: Factor on the output kernels at initialisation; 0 makes a new head predict exactly
            zero.
    """

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: Mapping[str, int], *, outscale: float
    ) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.names = tuple(outputs)
        self.out = nn.ModuleList(
            Linear(units, width, outscale=outscale) for width in outputs.values()
        )

    def outputs(self, hidden: Tensor) -> dict[str, Tensor]:
        """MLP output -> float32 values per name."""
        return {
            name: layer(hidden).float() for name, layer in zip(self.names, self.out, strict=True)
        }

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """[..., inputs] -> name -> float32 [..., width]."""
        return self.outputs(self.mlp(feature))

    def from_first(self, first: Tensor) -> dict[str, Tensor]:
        """As ``forward``, given the first linear layer's output."""
        return self.outputs(self.mlp.after_first(first))


def linear_rows(x: Tensor, layers: list[Linear]) -> list[Tensor]:
    """Several linear layers of one input as one matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    joint = functional.linear(x, weight, bias)
    return list(torch.split(joint, [layer.out_features for layer in layers], -1))
