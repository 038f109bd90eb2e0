"""Calls to roles that may die and come back.

A role is an actor with a name; its successor has the same name. ``ActorClient`` holds the present
handle, and finds the next one when a call says that it died. What is called is named by the method
of the role's Protocol (``worldloom_dist.interfaces``), so a type checker sees every call:

    coordinator = ActorClient[Coordinator]("coordinator-0")
    due = coordinator.call(Coordinator.updates_due)          wait, for a successor if need be
    await coordinator.acall(Coordinator.report, 0, rows, 7)  the same on an event loop
    coordinator.notify(Coordinator.stored, 0)                do not wait; may be lost
    coordinator.within(timeout_s=5.0, patience_s=0.0).call(Coordinator.is_live, 0)
    reference = submit(handle, Shard.finalize)               one process, not its successor

Only calls that are safe to repeat go through ``call`` and ``acall``. Each attempt has a deadline,
so no caller waits for ever on a process that hangs: the supervisor kills it, the call fails, and
the next attempt finds the successor.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError

from worldloom.core.backoff import Backoff
from worldloom.core.exceptions import StateError

__all__ = ["GONE", "ActorClient", "RoleGoneError", "drain_errors", "submit"]

P = ParamSpec("P")
R = TypeVar("R")
RoleT = TypeVar("RoleT")

GONE = (RayActorError, GetTimeoutError)
"""What a call raises when the other side died or does not answer."""
TIMEOUT_S = 30.0
PATIENCE_S = 60.0
"""Of a call that is not said to be ``within`` others: of one attempt, and for successors."""
NOTICE = "an earlier notice"
"""Beside the handle: what became of it tells whether that is stale."""
PAUSES = Backoff(first_s=0.05, longest_s=1.0)
_errors: Counter[str] = Counter()


def drain_errors() -> Counter[str]:
    """Calls of this process that failed since the last time, by reason: ``gone`` or ``timeout``."""
    taken = Counter(_errors)
    _errors.subtract(taken)
    return +taken


class RoleGoneError(StateError):
    """A role did not come back in time."""


@overload
def submit(
    handle: Any,
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> ObjectRef[R]: ...
@overload
def submit(
    handle: Any, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
) -> ObjectRef[R]: ...
def submit(handle: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> ObjectRef[Any]:
    """Call a method of one actor and do not wait.

    Args:
        handle: The actor's.
        method: As the role's Protocol declares it; its name is what is called.
        args, kwargs: Its arguments.

    Returns:
        The reference of the result.
    """
    reference: ObjectRef[Any] = getattr(handle, method.__name__).remote(*args, **kwargs)
    return reference


class ActorClient(Generic[RoleT]):
    """A role by name, in the namespace of this process; ``RoleT`` is its Protocol.

    Args:
        name: For example ``shard-0``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._timeout_s: float | None = TIMEOUT_S
        self._patience_s = PATIENCE_S
        self._found: dict[str, Any] = {}

    def within(
        self, *, timeout_s: float | None = TIMEOUT_S, patience_s: float = PATIENCE_S
    ) -> ActorClient[RoleT]:
        """The same role, called with other deadlines.

        Args:
            timeout_s: Of one attempt; None waits as long as the role lives.
            patience_s: How long to repeat the call after the first failure.
        """
        other = copy.copy(self)  # shares the handle that was found
        other._timeout_s = timeout_s
        other._patience_s = patience_s
        return other

    @property
    def handle(self) -> Any:
        """The present actor handle.

        Raises:
            ValueError: If no actor of that name lives now.
        """
        handle = self._found.get(self.name)
        if handle is None:
            handle = self._found[self.name] = ray.get_actor(self.name)
        return handle

    def forget(self) -> None:
        """Look the handle up again next time."""
        self._found.clear()

    def notify(
        self, method: Callable[Concatenate[RoleT, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Send and do not wait; a role that is away misses it, and its successor gets the next one:
        Ray says nothing when it sends to a process that died, so what became of an earlier notice
        is looked at.
        """
        earlier: Future[Any] | None = self._found.get(NOTICE)
        is_known = earlier is not None and earlier.done()
        try:
            if is_known and earlier is not None and isinstance(earlier.exception(), GONE):
                _errors["gone"] += 1
                self.forget()
            notice = submit(self.handle, method, *args, **kwargs)
        except (ValueError, *GONE):
            _errors["gone"] += 1
            self.forget()
            return
        if earlier is None or is_known:
            self._found[NOTICE] = notice.future()

    @overload
    def call(
        self,
        method: Callable[Concatenate[RoleT, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    def call(
        self, method: Callable[Concatenate[RoleT, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call and wait; when the role dies, wait for its successor and call again.

        Args:
            method: Of the role's Protocol, and safe to repeat.
            args, kwargs: Its arguments.

        Raises:
            RoleGoneError: If no successor answered in time (:meth:`within`).
        """
        give_up = None
        repetition = 0
        while True:
            try:
                reference = submit(self.handle, method, *args, **kwargs)
                return ray.get(reference, timeout=self._timeout_s)
            except (ValueError, *GONE) as error:
                give_up = self._after_failure(error, give_up)
            time.sleep(PAUSES.pause_s(repetition))
            repetition += 1

    @overload
    async def acall(
        self,
        method: Callable[Concatenate[RoleT, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def acall(
        self, method: Callable[Concatenate[RoleT, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def acall(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """:meth:`call` for an event loop."""
        give_up = None
        repetition = 0
        while True:
            try:
                reference: Any = submit(self.handle, method, *args, **kwargs)
                return await asyncio.wait_for(reference, self._timeout_s)
            except (ValueError, TimeoutError, *GONE) as error:
                give_up = self._after_failure(error, give_up)
            await asyncio.sleep(PAUSES.pause_s(repetition))
            repetition += 1

    def _after_failure(self, error: Exception, give_up: float | None) -> float:
        if isinstance(error, ValueError) and "Failed to look up actor" not in str(error):
            raise error
        _errors["timeout" if isinstance(error, GetTimeoutError | TimeoutError) else "gone"] += 1
        self.forget()
        deadline = give_up if give_up is not None else time.monotonic() + self._patience_s
        if time.monotonic() > deadline:
            raise RoleGoneError(
                f"{self.name} did not answer for {self._patience_s:.0f} s ({type(error).__name__})"
            ) from error
        return deadline
