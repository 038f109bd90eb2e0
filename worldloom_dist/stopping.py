"""Signals: the first Ctrl-C or SIGTERM asks a run to checkpoint and leave, the second one leaves at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopFlag", "stop_on_signals"]


class StopFlag:
    """Set once; says why."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    @property
    def is_set(self) -> bool:
        """True when the run was asked to stop."""
        return self._event.is_set()

    def set(self, reason: str) -> None:
        """Ask the run to stop."""
        self.reason = self.reason or reason
        self._event.set()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set; a second signal raises ``KeyboardInterrupt`` where the program is.

    Call from the main thread. The former handlers come back at the end.
    """
    flag = StopFlag()

    def handle(number: int, _: FrameType | None) -> None:
        if flag.is_set:
            raise KeyboardInterrupt
        flag.set("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
