"""How the command is called that a person has typed."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["called"]

MODULES_OF = "worldloom_dist"


def called(command: str) -> str:
    """What a usage line begins with: ``worldloom status``, or ``python -m worldloom_dist.status``
    where that was typed.

    Args:
        command: Of ``worldloom``, for example ``status``.
    """
    parts = Path(sys.argv[0]).with_suffix("").parts
    if MODULES_OF not in parts:
        return f"worldloom {command}"
    path = [part for part in parts[parts.index(MODULES_OF) :] if part != "__main__"]
    return f"python -m {'.'.join(path)}"
