"""Ctrl-C, SIGTERM and SIGHUP while a model is trained: the first one ends training behind the
present update, a second one leaves at once.

Python may raise KeyboardInterrupt between any two instructions, also between the weights and the
moments of an optimizer's step. A handler that only takes note keeps every update whole. It is set
in the main thread alone, and only in the place of Python's own handlers: a program with handlers of
its own keeps them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interruption"]

logger = logging.getLogger(__name__)

DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Interruption:
    """What was asked for by a signal.

    Attributes:
        signal: The first signal that came, or None.
        is_forced: A second one came: nothing is to be waited for or written any more.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_forced = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of signals while the block runs; afterwards handlers are as they were."""
        self.signal = None
        self.is_forced = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        replaced = {
            number: kind for number, kind in DEFAULTS.items() if signal.getsignal(number) is kind
        }
        for number in replaced:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, kind in replaced.items():
                signal.signal(number, kind)

    def pass_on(self) -> None:
        """Hand a signal that asks the process, and not only the training, to end to its handler."""
        if self.signal not in (None, signal.SIGINT):
            os.kill(os.getpid(), self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            logger.warning(
                "%s: stopping after the present update; again to leave at once",
                signal.Signals(number).name,
            )
            return
        self.is_forced = True
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt
