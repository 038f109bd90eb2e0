"""Names of a package that are imported when first used, so that ``import worldloom`` is quick."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["alias_of", "load_lazily"]


def load_lazily(
    package: str,
    name: str,
    homes: Mapping[str, Collection[str]],
) -> Any:
    """The value of a name that a package offers, or its module of that name; for the package's own
    ``__getattr__``.

    Args:
        package: Its ``__name__``.
        name: What was asked for; it is kept in the package from then on.
        homes: Module, below ``worldloom``, -> the names that live there.

    Raises:
        AttributeError: If it offers no such name.
    """
    home = next((module for module, names in homes.items() if name in names), None)
    if home is not None:
        value = getattr(importlib.import_module(f"worldloom.{home}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
        value = importlib.import_module(f"{package}.{name}")
    else:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    setattr(sys.modules[package], name, value)
    return value


def alias_of(alias: str, *targets: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that is another one under a former name.

    Args:
        alias: The ``__name__`` of the module with the former name.
        targets: Modules in which a name is looked for, the first one first; imported when a name is
            used.
    """

    def get(name: str) -> Any:
        """The value that a target has under this name."""
        for target in targets:
            module = importlib.import_module(target)
            if hasattr(module, name):
                value = getattr(module, name)
                setattr(sys.modules[alias], name, value)
                return value
        raise AttributeError(f"module {alias!r} has no attribute {name!r}")

    return get
