"""The one place where this library reaches for ``worldloom_dist``, the package above it: by name,
when a command or :meth:`worldloom.Agent.train` asks for it. Nothing else here knows the package.
"""

from __future__ import annotations

import importlib
from typing import Any

from worldloom.core.exceptions import MissingDependencyError

__all__ = ["distributed"]

PACKAGE = "worldloom_dist"


def distributed(module: str, purpose: str) -> Any:
    """A module of ``worldloom_dist``.

    Args:
        module: Its name below the package.
        purpose: What it is needed for, for the message.

    Raises:
        MissingDependencyError: If the package is not installed.
    """
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        raise MissingDependencyError(purpose, "worldloom-dist") from error
