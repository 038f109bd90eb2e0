"""World models; names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

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
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"worldloom.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
