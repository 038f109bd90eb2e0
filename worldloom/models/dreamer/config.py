"""Sizes and constants of the DreamerV3 world model. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from worldloom.core.exceptions import ConfigurationError

__all__ = ["DreamerSizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamerSizes:
    """Everything that decides the shapes and the fixed constants of the networks; the defaults are
    the official ones.
    """

    deter: int = 2048
    """Size of the deterministic recurrent state (D)."""
    hidden: int = 256
    """Width of the layers around the recurrent core."""
    stoch: int = 32
    """Number of categorical latents (S)."""
    classes: int = 16
    """Classes of each categorical latent (C)."""
    units: int = 256
    """Width of encoder, decoder and head MLPs."""
    layers: int = 3
    """Layers of the vector branches of encoder and decoder."""
    depth: int = 16
    """Channel base of the convolutions; stages have depth x (2, 3, 4, 4) channels."""
    blocks: int = 8
    """Blocks of the recurrent core; deter must be divisible by it."""
    space_blocks: int = 8
    """Blocks of the decoder's first image layer; deter and 4 x depth must be divisible by it."""
    bins: int = 255
    """Bins of the two-hot reward and value heads."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into the latents."""

    def __post_init__(self) -> None:
        counts = (
            "deter",
            "hidden",
            "stoch",
            "classes",
            "units",
            "layers",
            "depth",
            "blocks",
            "space_blocks",
            "bins",
        )
        wrong = [
            f"{name} must be >= 1, got {getattr(self, name)}"
            for name in counts
            if getattr(self, name) < 1
        ]
        if not wrong and self.deter % self.blocks:
            wrong.append(f"deter must be divisible by blocks ({self.blocks}), got {self.deter}")
        if not wrong and self.classes > 256:
            wrong.append(
                f"classes must be <= 256 (replay stores them as bytes), got {self.classes}"
            )
        if not 0.0 <= self.unimix < 1.0:
            wrong.append(f"unimix must be in [0, 1), got {self.unimix}")
        if wrong:
            raise ConfigurationError("; ".join(wrong))

    @property
    def latent(self) -> int:
        """Width of the flattened stochastic state, S x C."""
        return self.stoch * self.classes

    @property
    def feature(self) -> int:
        """Width of what the heads read, deter + S x C."""
        return self.deter + self.latent
