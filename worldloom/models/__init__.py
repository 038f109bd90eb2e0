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
    "models.mlp.world_model": ("MLPWorldModel",),
    "models.public.dreamerv3": ("DreamerV3WorldModel",),
    "models.public.tdmpc2": ("TDMPC2WorldModel",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
