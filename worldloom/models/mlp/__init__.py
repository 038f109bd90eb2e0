"""The plain latent world model, ensembles of it, and planning in imagination; names load on first
use.
"""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

__all__ = ["MLPConfig", "MLPWorldModel", "plan"]

_HOMES = {
    "algorithms.configs": ("MLPConfig",),
    "algorithms.mlp.planning": ("plan",),
    "algorithms.mlp.world_model": ("MLPWorldModel",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
