"""What a role logs as a warning travels to the driver with its next ping, and from there to ``console.log``.

The log files of Ray's processes go away with a cluster of our own; a stack dump of a hanging env must not.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque

__all__ = ["LogRelay", "stack_of"]

KEPT_LINES, KEPT_CHARACTERS = 50, 4000


class LogRelay(logging.Handler):
    """Keeps the newest warnings of this process until they are fetched; safe from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.setFormatter(logging.Formatter("%(message)s"))

    def listen(self, *names: str) -> LogRelay:
        """Hear these loggers and those below them; returns itself."""
        for name in names:
            logging.getLogger(name).addHandler(self)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._lines.append(self.format(record)[:KEPT_CHARACTERS])

    def drain(self) -> list[str]:
        """The lines since the last call, oldest first."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines


def stack_of(thread: int) -> str:
    """Where a thread of this process is now, innermost call last; empty when it is gone."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame))[-KEPT_CHARACTERS:] if frame is not None else ""
