"""Signals: the first Ctrl-C, SIGTERM, or end of the terminal (SIGHUP) asks a run to checkpoint and
leave, a second Ctrl-C or SIGTERM leaves at once. What ``nohup`` has told to ignore the end of its
terminal does so.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["SIGNALS", "StopFlag", "stop_on_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    def listen(self) -> None:
        """Handle the signals from now on; call it again after a library has put its own handlers in
        the way (Ray does).
        """
        for number in SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            if number == signal.SIGHUP:  # a terminal that ends says so more than once
                return
            raise KeyboardInterrupt
        self.set("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT, SIGTERM and SIGHUP set; a second one of the first two raises
    ``KeyboardInterrupt`` where the program is.

    The former handlers come back at the end. In another thread than the main one, which gets no
    signals, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    former = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGHUP)}
    flag.listen()
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
