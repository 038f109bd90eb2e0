"""TD-MPC2's world model: encoder, latent dynamics, reward, termination, policy prior and critics;
names load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

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
    "core.config": ("TDMPC2Config",),
    "models.public.tdmpc2": ("TDMPC2WorldModel",),
    "models.public.tdmpc2_parts": (
        "Dynamics",
        "MLPEncoder",
        "PolicyHead",
        "QEnsemble",
        "QNetwork",
        "RewardHead",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"worldloom.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
