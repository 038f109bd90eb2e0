"""How often something happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Interval", "Throttle"]


class Interval:
    """True at most once per interval.

    Args:
        interval_s: Seconds; 0 is always.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last = time.monotonic()

    def is_due(self, *, at_once: bool = False) -> bool:
        """True when the interval has passed, or ``at_once``; starts the next one."""
        now = time.monotonic()
        if not at_once and now - self._last < self._interval_s:
            return False
        self._last = now
        return True


class Throttle:
    """Calls a function at once, or, when that was done a moment ago, once a little later: the last
    state is always told.

    Used on an event loop.

    Args:
        call: What is called.
        interval_s: Seconds between two calls; 0 calls every time.
    """

    def __init__(self, call: Callable[[], None], interval_s: float) -> None:
        self._call = call
        self._interval_s = interval_s
        self._last = -float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        """Call, now or within the interval."""
        left = self._last + self._interval_s - time.monotonic()
        if left <= 0:
            self._now()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._now)

    def _now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._last = time.monotonic()
        self._call()
