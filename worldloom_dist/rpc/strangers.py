"""Connections whose other end has not shown the key yet: how many a role bears at a time."""

from __future__ import annotations

import logging
import time
from typing import Protocol

__all__ = ["Guest", "Strangers"]

logger = logging.getLogger(__name__)

MOST = 128
"""More than roles of one run that call at the same moment, and few beside a process's files."""
WARN_EVERY_S = 60.0


class Guest(Protocol):
    """A connection that can be broken."""

    def abort(self) -> None:
        """Break it, at once."""


class Strangers:
    """Bounds them: one too many costs the oldest one of the address that has the most, so who
    crowds a role pushes out its own.

    Example:
        >>> class Line:
        ...     def abort(self): print("broken")
        >>> strangers = Strangers(most=1)
        >>> strangers.add("10.0.0.1", Line())
        >>> strangers.add("10.0.0.1", Line())
        broken
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._by_address: dict[str, dict[Guest, None]] = {}  # the oldest first
        self._said_at = -float("inf")

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    def add(self, address: str, guest: Guest) -> None:
        """One came."""
        self._by_address.setdefault(address, {})[guest] = None
        if len(self) > self._most:
            crowd = max(self._by_address, key=lambda one: len(self._by_address[one]))
            oldest = next(iter(self._by_address[crowd]))
            self.remove(crowd, oldest)
            oldest.abort()
            self.warn(f"more than {self._most} connections wait without showing the key", crowd)

    def remove(self, address: str, guest: Guest) -> None:
        """It showed the key, or is gone; no matter if that was said before."""
        guests = self._by_address.get(address, {})
        guests.pop(guest, None)
        if not guests:
            self._by_address.pop(address, None)

    def warn(self, what: str, address: str) -> None:
        """Log it, but not for every one of a crowd."""
        now = time.monotonic()
        if now > self._said_at + WARN_EVERY_S:
            self._said_at = now
            logger.warning("%s: from %s; hung up", what, address)
