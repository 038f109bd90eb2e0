"""A caller's end of a :mod:`worldloom_dist.rpc.connection` on an event loop, where many calls are
open at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import (
    RECONNECT_EVERY_S,
    Listening,
    connect,
    uses_tls,
    value_of,
)
from worldloom_dist.rpc.frames import HEAD, content_of, pieces_of

__all__ = ["AsyncRpcClient"]

logger = logging.getLogger(__name__)
ContentT = TypeVar("ContentT")
ResultT = TypeVar("ResultT")
RoleT = TypeVar("RoleT", bound=Listening)


class AsyncRpcClient(Generic[RoleT, ContentT, ResultT]):
    """As ``RpcClient``, for one event loop. A call waits as long as the role, or its successor,
    lives.

    Args:
        role: What is called.
        method: Of the role's Protocol; what its ``RpcServer`` does with the content, it does over
            Ray when nothing connects.
    """

    def __init__(
        self,
        role: ActorClient[RoleT],
        method: Callable[[RoleT, ContentT], Coroutine[Any, Any, ResultT]],
    ) -> None:
        self._role = role
        self._method = method
        self._writer: asyncio.StreamWriter | None = None
        self._connecting = asyncio.Lock()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._reading: asyncio.Task[None] | None = None
        self._connect_at = -float("inf")

    async def call(self, content: ContentT) -> ResultT:
        """Send and wait.

        Raises:
            RoleGoneError: If no successor came in time after the role died.
            StateError: If the role could not do it.
        """
        while await self._is_open():
            number = next(self._numbers)
            answer = asyncio.get_running_loop().create_future()
            self._open[number] = answer
            assert self._writer is not None
            self._writer.writelines(pieces_of(number, content))
            try:
                result: ResultT = value_of(await answer)
                return result
            except OSError as error:
                logger.info("the connection to %s broke: %s", self._role.name, error)
            finally:
                self._open.pop(number, None)
        return await self._role.within(timeout_s=None).acall(self._method, content)

    def close(self) -> None:
        """Hang up; what is open fails, and is asked again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the connection is closed"))

    async def _is_open(self) -> bool:
        """Open a connection if there is none; False when that failed a short time ago. A role that
        is away is waited for.
        """
        async with self._connecting:
            if self._writer is not None or time.monotonic() < self._connect_at or uses_tls():
                return self._writer is not None
            address = await self._role.acall(Listening.address)
            try:
                line = await asyncio.to_thread(connect, address, None)
            except OSError as error:
                self._connect_at = time.monotonic() + RECONNECT_EVERY_S
                logger.warning(
                    "%s:%d cannot be reached (%s); calling over Ray meanwhile",
                    address.host,
                    address.port,
                    error,
                )
                return False
            reader, self._writer = await asyncio.open_connection(sock=line)
            self._reading = asyncio.ensure_future(self._read(reader, self._writer))
            return True

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size, number = HEAD.unpack(await reader.readexactly(HEAD.size))
                result = content_of(await reader.readexactly(size))
                answer = self._open.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(result)
        if self._writer is writer:
            self.close()
