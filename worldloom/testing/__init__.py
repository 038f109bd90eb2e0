"""Checks that we ship: a world model or an agent of your own keeps the contract that the rest of
the house relies on; names load on first use.
"""

from __future__ import annotations

from typing import Any

from worldloom.core.lazy import load_lazily

__all__ = ["ContractError", "check_agent", "check_world_model"]

_HOMES = {
    "testing.contract": ("ContractError",),
    "testing.agent": ("check_agent",),
    "testing.world_model": ("check_world_model",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
