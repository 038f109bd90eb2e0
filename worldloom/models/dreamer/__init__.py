"""DreamerV3's world model; names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "RSSM",
    "CNNDecoder",
    "CNNEncoder",
    "ContinueHead",
    "Decoder",
    "DreamerV3Config",
    "DreamerV3WorldModel",
    "Encoder",
    "MLPDecoder",
    "MLPEncoder",
    "RewardHead",
    "symexp",
    "symlog",
]

_HOMES = {
    "core.config": ("DreamerV3Config",),
    "models.dreamer.decoder": ("Decoder",),
    "models.dreamer.encoder": ("Encoder",),
    "models.dreamer.rssm": ("RSSM",),
    "models.public.dreamer_parts": (
        "CNNDecoder",
        "CNNEncoder",
        "ContinueHead",
        "MLPDecoder",
        "MLPEncoder",
        "RewardHead",
    ),
    "models.public.dreamerv3": ("DreamerV3WorldModel",),
    "models.dreamer.heads": ("symexp", "symlog"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"worldloom.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
