"""Calls to a busy role over a socket of our own; Ray finds the role, watches it, and stands in when
nothing connects.

    caller --Ray: address()--> role                    once, and again after the connection broke
    caller ==number, content==> RpcServer -> ask(content)     for every call
    caller <==number, result==

What is called for every decision (an inference server) or every chunk (a shard, the coordinator)
must be cheap, and a call over Ray costs both sides several milliseconds of CPU
(``docs/adr/007-calls-over-a-socket.md``). A line is opened with a key that the role makes at random
and tells over Ray, so who may not call the actor may not call here: both sides show that they have
it (``rpc/handshake.py``), and every frame afterwards carries a code that only they can make
(``rpc/frames.py``). What travels is pickled and not encrypted, as between Ray's own processes;
where Ray uses TLS, everything goes over Ray.

Unblocked by: the answer; the end of the other process, which breaks the connection at once; the
death of its machine, by keep-alive; the deadline. A call that was under way is made again, so only
what is safe to repeat goes through a connection.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import select
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import ray

from worldloom.core.exceptions import StateError
from worldloom_dist.rpc.actor_client import ActorClient, RoleGoneError
from worldloom_dist.rpc.frames import FrameBody, FrameError, FrameReader, content_of, pieces_of
from worldloom_dist.rpc.handshake import (
    HANDSHAKE_S,
    NONCE_BYTES,
    PROOF_BYTES,
    Endpoint,
    Handshake,
    Line,
    connect,
    tune,
    uses_tls,
)
from worldloom_dist.rpc.strangers import Strangers

__all__ = ["LOOK_EVERY_S", "Endpoint", "Listening", "RpcClient", "RpcServer", "value_of"]

logger = logging.getLogger(__name__)
ContentT = TypeVar("ContentT")
ResultT = TypeVar("ResultT")
RoleT = TypeVar("RoleT", bound="Listening")

KEY_BYTES = 32
RECONNECT_EVERY_S = 30.0
LOOK_EVERY_S = 1.0


class Listening(Protocol):
    """A role that has an :class:`RpcServer`."""

    async def address(self) -> Endpoint:
        """Where it listens, and the key; opens the socket when it is first asked."""


class RpcServer:
    """The role's end; lives on its event loop.

    Args:
        ask: Takes what a caller sent, and answers; when that is cancelled, the caller hears
            nothing.
        is_private: True when every caller is on this machine; else the node's address is listened
            on.
    """

    def __init__(self, ask: Callable[[Any], Awaitable[Any]], *, is_private: bool) -> None:
        self._ask = ask
        self._is_private = is_private
        self._key = secrets.token_bytes(KEY_BYTES)
        self._strangers = Strangers()
        self._opening: asyncio.Future[asyncio.Server] | None = None

    async def address(self) -> Endpoint:
        """Open the server, if that has not been done, and say where it is.

        Raises:
            OSError: If no socket can be opened now.
        """
        host = "127.0.0.1" if self._is_private else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        if self._opening is None:
            loop = asyncio.get_running_loop()
            self._opening = asyncio.ensure_future(
                loop.create_server(
                    lambda: _ServerConnection(self._ask, self._key, self._strangers), host, 0
                )
            )
        opening = self._opening
        try:
            server = await asyncio.shield(opening)
        except OSError:
            if self._opening is opening:  # it is tried again when it is asked again
                self._opening = None
            raise
        return Endpoint(host, server.sockets[0].getsockname()[1], self._key)


class _ServerConnection(asyncio.BufferedProtocol):
    """One line at the role's end: first both show the key, then frames come. Of a stranger 64
    bytes are read, and no memory is taken but for these.
    """

    def __init__(
        self, ask: Callable[[Any], Awaitable[Any]], key: bytes, strangers: Strangers
    ) -> None:
        self._ask = ask
        self._key = key
        self._strangers = strangers
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._hello = bytearray(NONCE_BYTES + PROOF_BYTES)
        self._said = 0
        self._frames: FrameReader | None = None  # of who has shown the key
        self._patience: asyncio.TimerHandle | None = None
        self._asked: set[asyncio.Future[Any]] = set()  # a loop alone does not keep them alive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; start the handshake deadline."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address = str((transport.get_extra_info("peername") or ("nowhere",))[0])
        tune(transport.get_extra_info("socket"))
        self._patience = asyncio.get_running_loop().call_later(HANDSHAKE_S, transport.abort)
        transport.write(self._nonce)
        self._strangers.add(self._address, transport)

    def connection_lost(self, _: Exception | None) -> None:
        """No answer is waited for any more."""
        self._is_no_stranger()

    def get_buffer(self, _: int) -> memoryview:
        """Where the next bytes go."""
        if self._frames is None:
            return memoryview(self._hello)[self._said :]
        return self._frames.free()

    def buffer_updated(self, count: int) -> None:
        """Bytes came; what the caller has not sent ends the connection."""
        if self._frames is not None:
            try:
                self._frames.arrived(count)
            except FrameError as error:
                logger.warning("%s, from %s: the connection is cut", error, self._address)
                self._transport.abort()
            return
        self._said += count
        if self._said == len(self._hello):
            self._let_in()

    def _let_in(self) -> None:
        self._is_no_stranger()
        shared = Handshake(self._key, self._nonce, bytes(self._hello[:NONCE_BYTES]))
        if not hmac.compare_digest(bytes(self._hello[NONCE_BYTES:]), shared.caller_proof):
            self._strangers.warn("a client without the key tried to connect", self._address)
            self._transport.abort()
            return
        self._frames = FrameReader(self._begin, shared.caller_frames())
        self._mac = shared.role_frames()
        self._transport.write(shared.role_proof)

    def _is_no_stranger(self) -> None:
        self._strangers.remove(self._address, self._transport)
        if self._patience is not None:
            self._patience.cancel()

    def _begin(self, number: int, body: FrameBody) -> None:
        try:
            content = content_of(body)
        except Exception as error:  # the edge: code of the caller that this process does not have
            self._send(number, (False, f"{type(error).__name__}: {error}"))
            return
        asked = asyncio.ensure_future(self._ask(content))
        self._asked.add(asked)
        asked.add_done_callback(partial(self._answer, number))

    def _answer(self, number: int, future: asyncio.Future[Any]) -> None:
        self._asked.discard(future)
        if future.cancelled() or self._transport.is_closing():
            return
        error = future.exception()
        if error is not None:
            logger.error("a call over a connection failed", exc_info=error)
            self._send(number, (False, f"{type(error).__name__}: {error}"))
        else:
            self._send(number, (True, future.result()))

    def _send(self, number: int, result: tuple[bool, Any]) -> None:
        try:
            pieces = pieces_of(number, result, self._mac)
        except Exception as error:  # the edge: an answer of the role that cannot be pickled
            logger.error("an answer cannot be sent", exc_info=error)
            reason = f"its answer cannot be sent ({type(error).__name__}: {error})"
            pieces = pieces_of(number, (False, reason), self._mac)
        for piece in pieces:
            self._transport.write(piece)


class _PendingCall(NamedTuple):
    line: int
    number: int


@dataclass(slots=True)
class RpcClient(Generic[RoleT, ContentT, ResultT]):
    """A caller's end, for one method; used by one thread. Several calls may be open.

    Args:
        role: What is called.
        method: Of the role's Protocol; what its :class:`RpcServer` does with the content, it does
            over Ray when nothing connects.
        timeout_s: Silence after which a call is made again; None waits as long as the role lives.
        patience_s: How long to go on after the first failure.
        on_wait: Called with True before waiting for an answer, and with False after.
        is_away: Asked once a second while no answer comes; True ends the wait as silence of
            ``timeout_s`` does.
    """

    role: ActorClient[RoleT]
    method: Callable[[RoleT, ContentT], Coroutine[Any, Any, ResultT]]
    timeout_s: float | None
    patience_s: float
    on_wait: Callable[[bool], None] = lambda _: None
    is_away: Callable[[], bool] | None = None
    _line: Line | None = field(default=None, init=False)
    _frames: FrameReader | None = field(default=None, init=False)
    _lines: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _early: dict[int, Any] = field(default_factory=dict, init=False)
    _connect_at: float = field(default=-float("inf"), init=False)

    def submit(self, content: ContentT) -> Callable[[], ResultT]:
        """Send; the result waits for the answer, from a successor of the role if need be.

        Raises:
            RoleGoneError: When waiting, if no role answered in time.
            StateError: When waiting, if the role could not do it.
        """
        return partial(self._wait, content, self._send(content))

    def call(self, content: ContentT) -> ResultT:
        """Send and wait."""
        return self.submit(content)()

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.socket.close()
            self._line = None

    def _wait(self, content: ContentT, ticket: _PendingCall | None) -> ResultT:
        self.on_wait(True)
        give_up: float | None = None
        try:
            while True:
                if ticket is not None and ticket.line == self._lines and self._line is not None:
                    try:
                        result: ResultT = value_of(self._receive(ticket.number))
                        return result
                    except OSError as error:
                        goes_on = "; what is open is sent again" if self.patience_s else ""
                        logger.warning(
                            "the connection to %s broke (%s)%s", self.role.name, error, goes_on
                        )
                        self.close()
                        give_up = give_up or time.monotonic() + self.patience_s
                if give_up is not None and time.monotonic() > give_up:
                    raise RoleGoneError(
                        f"{self.role.name} did not answer for {self.patience_s:.0f} s"
                    )
                ticket = self._send(content)
                if ticket is None:
                    role = self.role.within(timeout_s=self.timeout_s, patience_s=self.patience_s)
                    return role.call(self.method, content)
        finally:
            self.on_wait(False)

    def _send(self, content: ContentT) -> _PendingCall | None:
        """None when there is no line just now."""
        try:
            if self._line is None and not self._connect():
                return None
            self._calls += 1
            assert self._line is not None
            for piece in pieces_of(self._calls, content, self._line.sent):
                self._line.socket.sendall(piece)
        except OSError as error:
            logger.info("no line to %s: %s", self.role.name, error)
            self.close()
            return None
        return _PendingCall(self._lines, self._calls)

    def _receive(self, number: int) -> Any:
        while number not in self._early:
            assert self._line is not None
            assert self._frames is not None
            if self.is_away is not None:
                self._look_while_silent(self._line.socket, self.is_away)
            count = self._line.socket.recv_into(self._frames.free())
            if not count:
                raise ConnectionError("the other side has hung up")
            self._frames.arrived(count)
        return self._early.pop(number)

    def _keep(self, number: int, body: FrameBody) -> None:
        self._early[number] = content_of(body)

    def _look_while_silent(self, line: socket.socket, is_away: Callable[[], bool]) -> None:
        poll = select.poll()
        started = time.monotonic()
        poll.register(line, select.POLLIN)
        while not poll.poll(1000.0 * LOOK_EVERY_S):
            silent_s = time.monotonic() - started
            if is_away() or (self.timeout_s is not None and silent_s > self.timeout_s):
                raise TimeoutError(f"no answer for {silent_s:.0f} s")

    def _connect(self) -> bool:
        """Open a connection; False when that failed a short time ago. A role that is away is
        waited for.
        """
        if time.monotonic() < self._connect_at or uses_tls():
            return False
        address = self.role.within(patience_s=self.patience_s).call(Listening.address)
        try:
            self._line = connect(address, self.timeout_s)
        except OSError as error:
            self._connect_at = time.monotonic() + RECONNECT_EVERY_S
            logger.warning(
                "%s:%d cannot be reached (%s); calling over Ray meanwhile",
                address.host,
                address.port,
                error,
            )
            return False
        self._frames = FrameReader(self._keep, self._line.received)
        self._lines = self._lines + 1
        self._early = {}
        return True


def value_of(result: tuple[bool, Any]) -> Any:
    """The value that a role answered with.

    Raises:
        StateError: If it could not; says why.
    """
    is_good, value = result
    if not is_good:
        raise StateError(value)
    return value
