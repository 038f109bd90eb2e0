"""How the command is called that a person has typed."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["called"]

COMMAND = "worldloom"


def called(command: str, module: str) -> str:
    """What a usage line begins with: the words that were typed.

    Args:
        command: Of ``worldloom``, for example ``status``.
        module: That does the same by ``python -m``, for example ``worldloom_dist.status``.
    """
    program = Path(sys.argv[0])
    is_command = program.stem == COMMAND or program.parts[-2:] == (COMMAND, "__main__.py")
    return f"{COMMAND} {command}" if is_command else f"python -m {module}"
