"""What a role has to say to people travels to the driver with its next ping, and from there to
``console.log``.

The log files of Ray's processes go away with a cluster of our own; a stack dump of a hanging env
must not.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque

__all__ = ["LogForwarder", "stack_of"]

OURS = ("worldloom", "worldloom_dist")
KEPT_LINES = 50
KEPT_CHARACTERS = 4000


class LogForwarder(logging.Handler):
    """Keeps the newest warnings of this process until they are fetched; safe from any thread.

    Args:
        news: Loggers, with those below them, whose every line at the level of information is kept
            too.
    """

    def __init__(self, *news: str) -> None:
        super().__init__(logging.INFO)
        self._news = news
        self._lines = deque[tuple[int, str]](maxlen=KEPT_LINES)
        for name in news:
            logging.getLogger(name).setLevel(logging.INFO)

    def listen(self, *names: str) -> LogForwarder:
        """Hear these loggers (by default all of ours) and those below them; returns itself."""
        for name in names or OURS:
            logging.getLogger(name).addHandler(self)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, with the last line of its traceback."""
        if record.levelno < logging.WARNING and not record.name.startswith(self._news):
            return
        try:
            error = record.exc_info[1] if record.exc_info else None
            why = "" if error is None else f" ({type(error).__name__}: {error})"
            self._lines.append((record.levelno, f"{record.getMessage()}{why}"[:KEPT_CHARACTERS]))
        except Exception:  # as every handler of the standard library: logging never raises
            self.handleError(record)

    def drain(self) -> list[tuple[int, str]]:
        """Level and text of the lines since the last call, oldest first."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines


def stack_of(thread: int) -> str:
    """Where a thread of this process is now, innermost call last; empty when it is gone."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame))[-KEPT_CHARACTERS:] if frame is not None else ""
