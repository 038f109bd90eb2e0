"""Reading what others wrote: whatever a damaged or hostile file makes a parser raise, its reader
raises one documented error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import CheckpointError, WorldLoomError

__all__ = ["reading"]

LONGEST = 300


@contextlib.contextmanager
def reading(source: object, what: str = "is damaged or foreign") -> Iterator[None]:
    """Read ``source`` in this block; an error of ours passes, every other becomes a
    ``CheckpointError``.

    A parser of another program's file may raise anything, a ``MemoryError`` for a size that the
    file only claims among them.

    Raises:
        CheckpointError: If it cannot be read; names the source and the cause.
    """
    try:
        yield
    except WorldLoomError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:LONGEST]}"
        raise CheckpointError(f"{source}: {what} ({reason})") from error
