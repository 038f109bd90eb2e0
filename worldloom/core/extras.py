"""The line that installs an optional package."""

from __future__ import annotations

from importlib import metadata

__all__ = ["install_line"]

LIBRARY = "worldloom"
SYSTEM = "worldloom-dist"


def install_line(*extras: str) -> str:
    """``pip install`` of extras, for the distribution that is installed here: the library alone has
    no reason to bring Ray.
    """
    name = LIBRARY if _has(LIBRARY) and not _has(SYSTEM) else SYSTEM
    return f"pip install '{name}[{','.join(extras)}]'"


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
