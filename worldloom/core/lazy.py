"""Names of a package that are imported when first used, so that ``import worldloom`` is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["load_lazily"]


def load_lazily(
    package: str,
    name: str,
    homes: Mapping[str, Collection[str]],
    subpackages: Collection[str] = (),
) -> Any:
    """The value of a name that a package offers; for the package's own ``__getattr__``.

    Args:
        package: Its ``__name__``.
        name: What was asked for; it is kept in the package from then on.
        homes: Module, below ``worldloom``, -> the names that live there.
        subpackages: Packages below it that are names of it too.

    Raises:
        AttributeError: If it offers no such name.
    """
    home = next((module for module, names in homes.items() if name in names), None)
    if home is not None:
        value = getattr(importlib.import_module(f"worldloom.{home}"), name)
    elif name in subpackages:
        value = importlib.import_module(f"{package}.{name}")
    else:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    setattr(sys.modules[package], name, value)
    return value
