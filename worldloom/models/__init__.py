"""World models; names load on first use."""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

__all__ = [
    "DreamerV3WorldModel",
    "MLPWorldModel",
    "TDMPC2WorldModel",
]

_HOMES = {
    "algorithms.mlp.world_model": ("MLPWorldModel",),
    "algorithms.dreamerv3.world_model": ("DreamerV3WorldModel",),
    "algorithms.tdmpc2.world_model": ("TDMPC2WorldModel",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
