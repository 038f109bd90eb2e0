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


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
