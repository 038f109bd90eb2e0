"""The plain latent world model, ensembles of it, and planning in imagination; names load on first
use.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["MLPConfig", "MLPWorldModel", "plan"]

_HOME_OF = {
    "MLPConfig": "core.config",
    "MLPWorldModel": "models.mlp.world_model",
    "plan": "models.mlp.planning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"worldloom.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
