"""Signals: the first Ctrl-C, SIGTERM, or end of the terminal (SIGHUP) asks a run to checkpoint and
leave, a second Ctrl-C or SIGTERM leaves at once. What ``nohup`` has told to ignore the end of its
terminal does so.

SIGUSR1 is a batch system's warning that it takes the machine away: the run checkpoints and leaves
with exit status 75, which asks to be started again. The SIGTERM that follows at the limit leaves it
the time that is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["EXIT_AGAIN", "SIGNALS", "StopFlag", "stop_on_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_AGAIN = os.EX_TEMPFAIL
"""Exit status of a run that stopped with a checkpoint because its machine goes away: start it again
(75, of sysexits).
"""


class StopFlag:
    """Set once; says why.

    Attributes:
        reason: Who asked.
        asks_again: True when the run should be started again elsewhere, or later.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._is_at_limit = False
        self.reason = ""
        self.asks_again = False

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
        the way (Ray does). In another thread than the main one, which gets no signals, nothing
        happens.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*SIGNALS, signal.SIGUSR1):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.is_set:
            self.asks_again = number == signal.SIGUSR1
            self.set("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
            at_once = "; once more leaves at once" if number in SIGNALS else ""
            _say(f"{self.reason}: stopping{at_once}\n")
        elif number in (signal.SIGHUP, signal.SIGUSR1):  # they may be said more than once
            return
        elif number == signal.SIGTERM and self.asks_again and not self._is_at_limit:
            self._is_at_limit = True
        else:
            raise KeyboardInterrupt


def _say(line: str) -> None:
    """On the screen at once, since it may take seconds until the run looks (Ray's start does); not
    by ``print``, which a handler may have interrupted.
    """
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT, SIGTERM, SIGHUP and SIGUSR1 set; a second one of the first two raises
    ``KeyboardInterrupt`` where the program is.

    The former handlers come back at the end. In another thread than the main one, which gets no
    signals, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # never set
        return
    former = {
        number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGHUP, signal.SIGUSR1)
    }
    flag.listen()
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
