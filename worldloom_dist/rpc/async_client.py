"""A caller's end of a :mod:`worldloom_dist.rpc.connection` on an event loop, where many calls are
open at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import RECONNECT_EVERY_S, Listening, value_of
from worldloom_dist.rpc.frames import FrameBody, FrameError, FrameReader, content_of, pieces_of
from worldloom_dist.rpc.handshake import Line, connect, uses_tls

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
        self._line: _Line | None = None
        self._connecting = asyncio.Lock()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
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
            assert self._line is not None
            try:
                self._line.send(number, content)
                result: ResultT = value_of(await answer)
                return result
            except OSError as error:
                logger.info("the connection to %s broke: %s", self._role.name, error)
            finally:
                self._open.pop(number, None)
        return await self._role.within(timeout_s=None).acall(self._method, content)

    def close(self) -> None:
        """Hang up; what is open fails, and is asked again."""
        if self._line is not None:
            self._line.close()

    async def _is_open(self) -> bool:
        """Open a connection if there is none; False when that failed a short time ago. A role that
        is away is waited for.
        """
        async with self._connecting:
            if self._line is not None or time.monotonic() < self._connect_at or uses_tls():
                return self._line is not None
            try:
                address = await self._role.acall(Listening.address)
                opened = await asyncio.to_thread(connect, address, None)
            except OSError as error:  # of the role's, too: it can open no socket
                self._connect_at = time.monotonic() + RECONNECT_EVERY_S
                logger.warning(
                    "no line to %s (%s); calling over Ray meanwhile", self._role.name, error
                )
                return False
            line = _Line(opened, self._answer, self._lost)
            opened.socket.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: line, sock=opened.socket)
            self._line = None if line.is_lost else line
            return self._line is not None

    def _answer(self, number: int, body: FrameBody) -> None:
        result = content_of(body)
        answer = self._open.get(number)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def _lost(self, why: Exception) -> None:
        self._line = None
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(why)


class _Line(asyncio.BufferedProtocol):
    """An open connection at the caller's end."""

    def __init__(
        self,
        opened: Line,
        on_frame: Callable[[int, FrameBody], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._mac = opened.sent
        self._frames = FrameReader(on_frame, opened.received)
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self.is_lost = False

    def send(self, number: int, content: Any) -> None:
        """Send a call."""
        assert self._transport is not None
        for piece in pieces_of(number, content, self._mac):
            self._transport.write(piece)

    def close(self, why: str = "the connection is closed") -> None:
        """Hang up, at once."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(ConnectionError(why))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be used."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, _: int) -> memoryview:
        """Where the next bytes go."""
        return self._frames.free()

    def buffer_updated(self, count: int) -> None:
        """Bytes came; what the role has not sent ends the connection."""
        try:
            self._frames.arrived(count)
        except FrameError as error:
            logger.warning("%s: the connection is cut, and what is open is sent again", error)
            self.close(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        """The other side has hung up, or is gone."""
        self._lose(error or ConnectionError("the other side has hung up"))

    def _lose(self, why: Exception) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._on_lost(why)
