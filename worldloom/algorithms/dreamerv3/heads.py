"""Small networks on top of a latent feature: MLP with named linear outputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from worldloom.nn import functional
from worldloom.nn.dense import MLP, Linear
from worldloom.nn.functional import symlog

__all__ = ["Head", "symexp", "symlog"]  # the two functions are here, where 0.1 had them

LARGEST = 88.0
"""exp of this is still a float32."""


def symexp(x: Tensor) -> Tensor:
    """Inverse of symlog for use outside the networks: finite for every finite number."""
    return functional.symexp(x.clamp(-LARGEST, LARGEST))


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
