"""How the command is called that a person has typed, and how it ends by Ctrl-C."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

__all__ = ["EXIT_INTERRUPTED", "called", "interruptible"]

MODULES_OF = "worldloom_dist"
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""
P = ParamSpec("P")


def interruptible(main: Callable[P, int]) -> Callable[P, int]:
    """A command that Ctrl-C ends with one line and exit status 130, wherever it is.

    Args:
        main: Returns the exit status.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        """``main``, or 130."""
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            return EXIT_INTERRUPTED

    return run


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
