"""How often something happens."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """True at most once per interval.

    Args:
        interval_s: Seconds; 0 is always.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s, self._last = interval_s, time.monotonic()

    def is_due(self) -> bool:
        """True when the interval has passed; starts the next one."""
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return False
        self._last = now
        return True
