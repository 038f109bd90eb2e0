"""TD-MPC2's world model: encoder, latent dynamics, reward, termination, policy prior and critics;
names load on first use.
"""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

__all__ = [
    "Dynamics",
    "MLPEncoder",
    "PolicyHead",
    "QEnsemble",
    "QNetwork",
    "RewardHead",
    "TDMPC2Config",
    "TDMPC2WorldModel",
]

_HOMES = {
    "algorithms.configs": ("TDMPC2Config",),
    "algorithms.tdmpc2.world_model": ("TDMPC2WorldModel",),
    "algorithms.tdmpc2.parts": (
        "Dynamics",
        "MLPEncoder",
        "PolicyHead",
        "QEnsemble",
        "QNetwork",
        "RewardHead",
    ),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
