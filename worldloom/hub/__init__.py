"""Trained agents on a model hub that speaks the API of ``huggingface_hub``; names load on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

if TYPE_CHECKING:
    from worldloom.hub.fetching import HubAddress, located
    from worldloom.hub.pushing import push

__all__ = ["HubAddress", "located", "push"]

_HOMES = {"hub.fetching": ("HubAddress", "located"), "hub.pushing": ("push",)}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
