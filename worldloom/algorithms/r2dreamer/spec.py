"""What R2-Dreamer is before any network exists: DreamerV3's settings without those of a decoder,
and two of its own. No torch.

``docs/r2dreamer.md`` says where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from worldloom.algorithms.dreamerv3 import spec as dreamerv3
from worldloom.algorithms.dreamerv3.spec import (
    DEFAULT_PRESET,
    ENV_DEFAULTS,
    RUN_LENGTHS,
    DreamerAgentConfig,
    make_spec,
    presets_of,
    product_shapes,
)
from worldloom.core.fields import NOT_NEGATIVE

__all__ = [
    "ARCHITECTURE",
    "DEFAULT_PRESET",
    "ENV_DEFAULTS",
    "PRESETS",
    "RUN_LENGTHS",
    "R2DreamerAgentConfig",
    "make_spec",
    "product_shapes",
]


@dataclass(frozen=True, kw_only=True)
class R2DreamerAgentConfig(DreamerAgentConfig):
    """Settings of one R2-Dreamer agent."""

    BOUNDS = MappingProxyType(
        {
            **DreamerAgentConfig.BOUNDS,
            "scale_barlow": NOT_NEGATIVE,
            "redundancy_weight": NOT_NEGATIVE,
        }
    )
    """Which numbers the fields may hold."""
    name: str = "r2dreamer:size12m"
    """Algorithm and preset."""
    scale_barlow: float = 0.05
    """Loss scale of the representation, of its invariance and its redundancy together."""
    redundancy_weight: float = 5e-4
    """Factor of the redundancy (the correlations of different dimensions) beside the invariance."""


ARCHITECTURE = dreamerv3.ARCHITECTURE - {"space_blocks"}
"""Settings that decide the shape of the weights or of the stored rows; a resumed run keeps them."""

PRESETS: Mapping[str, Callable[[], R2DreamerAgentConfig]] = presets_of(
    "r2dreamer", R2DreamerAgentConfig
)
"""Preset name -> config."""
