"""The client for asyncio programs; the same dialogue as the blocking one.

async with await connect("127.0.0.1:50051") as session:
action = await session.act(obs)
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
import numpy as np

from worldloom_client.channel import backoff_s, channel_options, credentials, unavailable
from worldloom_client.errors import ClientError, UnavailableError
from worldloom_client.feed import Feed
from worldloom_client.rows import Action
from worldloom_client.settings import Settings, addresses_of
from worldloom_client.state import (
    ASK_HOLD,
    CONNECT_S,
    SERVICE,
    SessionState,
    check_retried,
    fallback_actions,
    one_row,
    plain,
    single,
    stacked,
)
from worldloom_client.wire import SESSION_KEY, Spec, message, method

__all__ = ["AsyncSession", "connect"]

TRY_FOR_S = 30.0


async def connect(address: str, **settings: Any) -> AsyncSession:
    """Open a session; arguments and errors as of :func:`worldloom_client.session.connect`."""
    session = AsyncSession(address, Settings(**settings))
    await session.open()
    return session


class AsyncSession:
    """One session on one event loop, with one question at a time; see
    :class:`worldloom_client.session.Session`, whose methods these are.

    Args:
        address: ``HOST:PORT`` of a gateway; several with commas are tried in turn.
        settings: How.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self._address = address
        self._addresses = addresses_of(address)
        self._settings = settings
        self._credentials, self._metadata = credentials(settings)
        self._state = SessionState(settings)
        self._channel: Any = None
        self._stream: Any = None
        self._number = 0
        self._is_closed = False
        self._asking = asyncio.Lock()
        self._feed: Feed | None = None
        self._returner: asyncio.Task[None] | None = None

    @property
    def version(self) -> tuple[int, int]:
        """Incarnation and update of the weights that acted last; ``(0, 0)`` for none."""
        return self._state.version

    @property
    def obs_specs(self) -> list[Spec]:
        """Arrays of an observation, in order."""
        return self._state.dialogue.obs

    @property
    def action_specs(self) -> list[Spec]:
        """Arrays of an action, in order."""
        return self._state.dialogue.action

    @property
    def stored(self) -> list[int]:
        """Per env the rows that are stored or were left out, as far as is known here."""
        return self._state.dialogue.stored

    @property
    def rows_skipped(self) -> int:
        """Rows that were left out of replay; see the blocking session."""
        spooled = 0 if self._feed is None else self._feed.rows_skipped
        return self._state.dialogue.rows_skipped + spooled

    @property
    def spooled_bytes(self) -> int:
        """Bytes of rows that are to be pushed yet."""
        return 0 if self._feed is None else self._feed.waiting_bytes

    @property
    def is_cut_off(self) -> bool:
        """True while the fallback acts, because no answer came."""
        return self._returner is not None

    async def open(self) -> None:
        """Open the session."""
        await self._reconnect(time.monotonic() + self._settings.timeout_s)
        if self._settings.on_hold == "spool" and self._state.is_storing:
            try:
                self._feed = await asyncio.to_thread(Feed, self._address, self._settings)
            except BaseException:
                await self._drop_channel()
                raise
            self._state.dialogue.on_skipped = self._feed.take

    async def act(
        self,
        obs: Any,
        reward: float = 0.0,
        *,
        terminated: bool = False,
        truncated: bool = False,
        env: int = 0,
    ) -> Any:
        """The action for one env."""
        rows = one_row(obs, self.obs_specs)
        flags = (np.array([terminated]), np.array([truncated]))
        return plain(await self.act_many(rows, np.array([reward], np.float64), *flags, envs=[env]))

    async def act_many(
        self,
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        *,
        envs: Sequence[int] | None = None,
    ) -> Action:
        """Actions of several envs in one question."""
        if self._is_closed:
            raise ClientError("the session is closed; open another one")
        asked = list(range(self._settings.num_envs)) if envs is None else list(envs)
        async with self._asking:
            talk = self._state.dialogue
            if not self._is_back():
                ran = self._fallback(obs, asked)
                talk.own(asked, obs, reward, terminated, truncated, ran)
                return stacked(ran)
            is_held = await self._wait_while_held()
            request = talk.question(asked, obs, reward, terminated, truncated, skip_store=is_held)
            if self._settings.fallback is None:
                await self._ask_until(request)
            elif not await self._ask_once(request):
                ran = self._fallback(obs, asked)
                talk.instead(request, ran)
                self._returner = asyncio.create_task(self._come_back())
                return stacked(ran)
            return talk.actions(request)

    def executed(self, action: Any, *, source: str = "human", env: int = 0) -> None:
        """Tell what ran in place of the last answer of ``env``."""
        named = single(action, "action", self.action_specs)
        self._state.dialogue.executed(env, named, source)

    def abandon(self, env: int = 0) -> None:
        """The episode of ``env`` ends without a last observation and counts as truncated."""
        self._state.dialogue.abandon(env)

    async def keep_alive(self) -> None:
        """Renew the lease while there is nothing to ask."""
        if self._is_closed:
            raise ClientError("the session is closed; open another one")
        async with self._asking:
            if self._is_back():
                await self._ask_until(ASK_HOLD)

    async def close(self, within_s: float | None = None) -> None:
        """End the session: what is open is stored.

        Args:
            within_s: How long rows in a spool may take to be pushed; by default ``timeout_s``. The
                rest stays there for the next process.

        Raises:
            RefusedError: If the run refused rows that were pushed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._returner is not None:
            self._returner.cancel()
            await asyncio.wait([self._returner])
        self._state.dialogue.complete()
        try:
            if self._channel is not None and self._state.secret:
                closed = await self._unary("Close", message("CloseRequest")(), CONNECT_S)
                for position in closed.position:
                    self._state.dialogue.stored_until(position.env, position.stored)
        except grpc.aio.AioRpcError:
            pass  # its lease ends it
        finally:
            await self._drop_channel()
        if self._feed is not None:
            await asyncio.to_thread(self._feed.close, within_s)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(0.0 if kind is not None else None)

    def _is_back(self) -> bool:
        """False while the line is cut.

        Raises:
            ClientError: If it never comes back.
        """
        if self._returner is not None and self._returner.done():
            returner, self._returner = self._returner, None
            returner.result()
        return self._returner is None

    async def _come_back(self) -> None:
        while True:
            try:
                await self._reconnect(time.monotonic() + TRY_FOR_S)
                return
            except UnavailableError:
                continue

    def _fallback(self, obs: Mapping[str, np.ndarray], envs: Sequence[int]) -> list[Action]:
        return fallback_actions(self._settings, obs, envs, self.action_specs)

    async def _wait_while_held(self) -> bool:
        """True when this row is to stay out of the session's rows."""
        while (hold_s := self._state.hold_s) > 0:
            if self._settings.on_hold != "wait":
                return True
            await asyncio.sleep(hold_s)
            await self._ask_until(ASK_HOLD)
        return False

    async def _ask_once(self, request: Any) -> bool:
        """False when no answer came within ``answer_within_s``, and the line is down then."""
        try:
            await self._ask(request, time.monotonic() + self._settings.answer_within_s)
        except (grpc.aio.AioRpcError, TimeoutError, _StreamEndedError) as error:
            if isinstance(error, grpc.aio.AioRpcError):
                check_retried(error)
            await self._drop_channel()
            return False
        return True

    async def _ask_until(self, request: Any) -> None:
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            try:
                if self._stream is None:
                    await self._reconnect(deadline)
                    if len(request.env):
                        return
                await self._ask(request, deadline)
                return
            except (grpc.aio.AioRpcError, TimeoutError, _StreamEndedError) as error:
                said = error if isinstance(error, grpc.aio.AioRpcError) else None
                if said is not None:
                    check_retried(said)
                await self._drop_channel()
                if time.monotonic() >= deadline:
                    raise unavailable(
                        self._addresses, self._settings.timeout_s, said, self._settings
                    ) from error

    async def _ask(self, request: Any, deadline: float) -> None:
        self._number += 1
        question = message("ActStreamRequest")(number=self._number, request=request)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._stream.write(question)
                answer = await self._stream.read()
        except asyncio.InvalidStateError as error:  # the call was over before we asked
            raise _StreamEndedError from error
        if answer is grpc.aio.EOF or answer.number != self._number:
            raise _StreamEndedError
        self._state.take(request, answer)

    async def _reconnect(self, deadline: float) -> None:
        last: grpc.aio.AioRpcError | None = None
        for tries in itertools.count():
            for address in self._addresses:
                try:
                    await self._open(address, deadline)
                    return
                except grpc.aio.AioRpcError as error:
                    check_retried(error)
                    last = error
                except (TimeoutError, _StreamEndedError):
                    pass
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        await self._drop_channel()
        raise unavailable(self._addresses, self._settings.timeout_s, last, self._settings)

    async def _open(self, address: str, deadline: float) -> None:
        await self._drop_channel()
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(address, channel_options())
        else:
            self._channel = grpc.aio.secure_channel(address, self._credentials, channel_options())
        within_s = min(CONNECT_S, max(0.1, deadline - time.monotonic()))
        described = await self._unary("Describe", message("DescribeRequest")(), within_s)
        request = self._state.open_request(described)
        response = await self._unary("Open", request, within_s)
        again = self._state.opened(request, described, response, address)
        stream = self._channel.stream_stream(
            method(SERVICE, "ActStream"),
            request_serializer=message("ActStreamRequest").SerializeToString,
            response_deserializer=message("ActStreamResponse").FromString,
        )
        self._stream = stream(metadata=self._with_secret())
        for question in again:
            await self._ask(question, deadline)

    async def _unary(self, name: str, request: Any, within_s: float) -> Any:
        call = self._channel.unary_unary(
            method(SERVICE, name),
            request_serializer=type(request).SerializeToString,
            response_deserializer=message(f"{name}Response").FromString,
        )
        return await call(request, timeout=within_s, metadata=self._with_secret())

    def _with_secret(self) -> tuple[Any, ...]:
        secret = self._state.secret
        return (*self._metadata, *(((SESSION_KEY, secret),) if secret else ()))

    async def _drop_channel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        if self._channel is not None:
            await self._channel.close()
        self._stream = None
        self._channel = None


class _StreamEndedError(ClientError):
    """The server ended the stream."""
