"""A trained policy as one file for other runtimes; names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

if TYPE_CHECKING:
    from worldloom.export.exporting import Exported, export_policy

__all__ = ["Exported", "export_policy"]

_HOMES = {"export.exporting": ("Exported", "export_policy")}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)
