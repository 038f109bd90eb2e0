"""DreamerV3's world model; names load on first use."""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

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
    "algorithms.configs": ("DreamerV3Config",),
    "algorithms.dreamerv3.decoder": ("Decoder",),
    "algorithms.dreamerv3.encoder": ("Encoder",),
    "algorithms.dreamerv3.rssm": ("RSSM",),
    "algorithms.dreamerv3.parts": (
        "CNNDecoder",
        "CNNEncoder",
        "ContinueHead",
        "MLPDecoder",
        "MLPEncoder",
        "RewardHead",
    ),
    "algorithms.dreamerv3.world_model": ("DreamerV3WorldModel",),
    "algorithms.dreamerv3.heads": ("symexp", "symlog"),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
