"""Calls to roles that may die and come back.

A role is an actor with a name; its successor has the same name. ``ActorClient`` holds the present
handle, and finds the next one when a call says that it died. Only calls that are safe to repeat go
through :meth:`ActorClient.call`; each has a deadline, so no one waits for ever on a process that
hangs: the supervisor kills it, the call fails, and the next attempt finds the successor.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from worldloom.core.exceptions import StateError

__all__ = ["GONE", "ActorClient", "RoleGoneError", "drain_errors"]

GONE = (RayActorError, GetTimeoutError)
"""What a call raises when the other side died or does not answer."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
_errors: Counter[str] = Counter()


def drain_errors() -> Counter[str]:
    """Calls of this process that failed since the last time, by reason: ``gone`` or ``timeout``."""
    taken = Counter(_errors)
    _errors.subtract(taken)
    return +taken


class RoleGoneError(StateError):
    """A role did not come back in time."""


class ActorClient:
    """A role by name, in the namespace of this process.

    Args:
        name: For example ``shard-0``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._handle: Any = None

    @property
    def handle(self) -> Any:
        """The present actor handle.

        Raises:
            ValueError: If no actor of that name lives now.
        """
        if self._handle is None:
            self._handle = ray.get_actor(self.name)
        return self._handle

    def forget(self) -> None:
        """Look the handle up again next time."""
        self._handle = None

    def notify(self, method: str, *args: Any) -> None:
        """Send and do not wait; a role that is away misses it."""
        try:
            getattr(self.handle, method).remote(*args)
        except (ValueError, *GONE):
            _errors["gone"] += 1
            self.forget()

    def call(
        self, method: str, *args: Any, timeout_s: float | None = 30.0, patience_s: float = 60.0
    ) -> Any:
        """Call and wait; when the role dies, wait for its successor and call again.

        Args:
            method, args: A method that is safe to repeat.
            timeout_s: Of one attempt; None waits as long as the role lives.
            patience_s: How long to go on trying after the first failure.

        Raises:
            RoleGoneError: If no successor answered in time.
        """
        give_up = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                return ray.get(getattr(self.handle, method).remote(*args), timeout=timeout_s)
            except (ValueError, *GONE) as error:
                give_up = self._after_failure(error, give_up, patience_s)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def acall(
        self, method: str, *args: Any, timeout_s: float | None = 30.0, patience_s: float = 60.0
    ) -> Any:
        """:meth:`call` for an event loop."""
        give_up = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await asyncio.wait_for(getattr(self.handle, method).remote(*args), timeout_s)
            except (ValueError, TimeoutError, *GONE) as error:
                give_up = self._after_failure(error, give_up, patience_s)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _after_failure(self, error: Exception, give_up: float | None, patience_s: float) -> float:
        if isinstance(error, ValueError) and "Failed to look up actor" not in str(error):
            raise error
        _errors["timeout" if isinstance(error, GetTimeoutError | TimeoutError) else "gone"] += 1
        self.forget()
        deadline = give_up if give_up is not None else time.monotonic() + patience_s
        if time.monotonic() > deadline:
            raise RoleGoneError(
                f"{self.name} did not answer for {patience_s:.0f} s ({type(error).__name__})"
            ) from error
        return deadline
