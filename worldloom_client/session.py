"""The blocking client.

    with connect("127.0.0.1:50051") as session:
        action = session.act(obs)                                # an episode begins
        action = session.act(obs, reward)
        session.act(obs, reward, terminated=True)                # it ends

A session asks over one stream. When it breaks, the session comes back by itself within
``timeout_s``: it resumes at the same server or at another one, asks again what is not stored, and
goes on.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from worldloom_client.dialogue import Action, Dialogue
from worldloom_client.errors import ClientError, RefusedError, UnavailableError
from worldloom_client.settings import Settings, backoff_s, channel_options, credentials
from worldloom_client.wire import (
    SESSION_KEY,
    Spec,
    message,
    method,
    specs_of,
)

__all__ = ["Session", "connect"]

SERVICE = "PolicyService"
RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,  # the server forgot the session: resume it
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
CONNECT_S = 10.0


def connect(address: str, **settings: Any) -> Session:
    """Open a session.

    Args:
        address: ``HOST:PORT`` of a gateway; several with commas are tried in turn.
        **settings: Fields of :class:`worldloom_client.settings.Settings`.

    Raises:
        ClientError: If a setting cannot be.
        RefusedError: If the gateway says no.
        UnavailableError: If none answers within ``timeout_s``.
    """
    return Session(address, Settings(**settings))


class Session:
    """One session; used by one thread. See the module.

    Args:
        address: As for :func:`connect`.
        settings: How.

    Attributes:
        description: What the server says of itself, a ``DescribeResponse``.
        version: ``(incarnation, update)`` of the weights that acted last.
        warning: What the server said when it opened the session; usually nothing.
        rows_skipped: Rows that were left out of replay while it wanted none.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self._addresses = [part.strip() for part in address.split(",") if part.strip()]
        if not self._addresses:
            raise ClientError("address: name at least one HOST:PORT")
        self._settings = settings
        self._credentials, self._metadata = credentials(settings)
        self._key = os.urandom(16)
        self._secret = b""
        self._channel: grpc.Channel | None = None
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: Any = None
        self._number = 0
        self._hold_until = 0.0
        self._is_closed = False
        self.version = (0, 0)
        self.warning = ""
        self.description: Any = None
        self._dialogue: Dialogue | None = None
        self._reconnect(time.monotonic() + settings.timeout_s)

    @property
    def obs_specs(self) -> list[Spec]:
        """Arrays of an observation, in order."""
        return self._talk.obs

    @property
    def action_specs(self) -> list[Spec]:
        """Arrays of an action, in order."""
        return self._talk.action

    @property
    def rows_skipped(self) -> int:
        """Rows that were left out of replay while it wanted none."""
        return self._talk.rows_skipped

    @property
    def stored(self) -> list[int]:
        """Rows of every env that are in replay, as far as is known here."""
        return self._talk.stored

    def act(
        self,
        obs: Any,
        reward: float = 0.0,
        *,
        terminated: bool = False,
        truncated: bool = False,
        env: int = 0,
    ) -> Any:
        """The action for one env.

        Args:
            obs: An array, or a mapping where the space is a dictionary.
            reward: Of the way here; of no meaning in the first row of an episode.
            terminated, truncated: This is the last observation of its episode; the action that
                comes back is of no meaning, and the next question begins an episode.
            env: Which of the session's envs.

        Returns:
            As ``obs``: an array, or a mapping. Continuous actions are in [-1, 1], discrete ones
            count from 0.

        Raises:
            WireError, RefusedError: If the question is wrong.
            UnavailableError: If no server answers within ``timeout_s``.
        """
        rows = {key: np.asarray(value)[None] for key, value in self._named(obs, "obs").items()}
        flags = (np.array([terminated]), np.array([truncated]))
        actions = self.act_many(rows, np.array([reward], np.float32), *flags, envs=[env])
        single = {key: value[0] for key, value in actions.items()}
        return single["action"] if set(single) == {"action"} else single

    def act_many(
        self,
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        *,
        envs: Sequence[int] | None = None,
    ) -> Action:
        """Actions of several envs in one question, which costs little more than one env.

        Args:
            obs: Per key ``[n, *shape]``.
            reward, terminated, truncated: ``[n]``.
            envs: Which; by default all, in order.

        Returns:
            Per key ``[n, *shape]``.

        Raises:
            WireError, RefusedError, UnavailableError: As :meth:`act`.
        """
        if self._is_closed:
            raise ClientError("the session is closed; open another one")
        asked = list(range(self._settings.num_envs)) if envs is None else list(envs)
        is_held = self._wait_while_held()
        request = self._talk.question(asked, obs, reward, terminated, truncated, skip_store=is_held)
        deadline = time.monotonic() + self._settings.timeout_s
        try:
            self._ask(request, deadline)
        except grpc.RpcError as error:
            _check_retried(error)
            self._reconnect(deadline)  # asks again what is not stored, this question too
        return self._talk.actions(request)

    def executed(self, action: Any, *, source: str = "human", env: int = 0) -> None:
        """Tell what ran in place of the last answer of ``env``; replay stores that, and who chose
        it.

        Args:
            action: As :meth:`act` returns it.
            source: ``human``, ``safety`` or ``script``.
            env: Which.

        Raises:
            WireError: If it is no action of the policy.
        """
        self._talk.executed(env, self._named(action, "action"), source)

    def abandon(self, env: int = 0) -> None:
        """The episode of ``env`` ends without a last observation and counts as truncated."""
        self._talk.abandon(env)

    def close(self) -> None:
        """End the session: what is open is stored."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._channel is not None and self._secret:
                self._stop_stream()
                self._unary("Close", message("CloseRequest")(), CONNECT_S)
        except grpc.RpcError:
            pass  # its lease ends it
        finally:
            self._drop_channel()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _talk(self) -> Dialogue:
        assert self._dialogue is not None
        return self._dialogue

    def _named(self, value: Any, group: str) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {group: value}

    def _wait_while_held(self) -> bool:
        """True when this row is to stay out of replay."""
        if not self._settings.store or time.monotonic() >= self._hold_until:
            return False
        if self._settings.on_hold == "act":
            return True
        time.sleep(max(0.0, self._hold_until - time.monotonic()))
        return False

    def _ask(self, request: Any, deadline: float) -> None:
        """Ask, and take the answer.

        Raises:
            grpc.RpcError: If the stream breaks.
            RefusedError: If the server says no.
        """
        self._number += 1
        self._questions.put(message("ActStreamRequest")(number=self._number, request=request))
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cancel)
        timer.daemon = True
        timer.start()
        try:
            answer = next(self._answers, None)
        finally:
            timer.cancel()
        if answer is None:
            raise _StreamEndedError
        if answer.HasField("refusal"):
            raise RefusedError(answer.refusal.code, answer.refusal.message)
        response = answer.response
        self.version = (response.version.incarnation, response.version.update)
        self._hold_until = time.monotonic() + response.hold.seconds + response.hold.nanos / 1e9
        self._talk.answer(request, response)

    def _cancel(self) -> None:
        if self._answers is not None:
            self._answers.cancel()

    def _reconnect(self, deadline: float) -> None:
        """Open the session, or resume it, and ask again what is not stored.

        Raises:
            RefusedError, UnavailableError: If that does not succeed before ``deadline``.
        """
        last: grpc.RpcError | None = None
        for tries in itertools.count():
            for address in self._addresses:
                try:
                    self._open(address, deadline)
                    return
                except grpc.RpcError as error:
                    _check_retried(error)
                    last = error
            if time.monotonic() >= deadline:
                break
            time.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        where = ", ".join(self._addresses)
        why = last.details() if isinstance(last, grpc.Call) else "no answer"
        raise UnavailableError(
            f"no gateway answered at {where} within {self._settings.timeout_s:g} s ({why})"
        )

    def _open(self, address: str, deadline: float) -> None:
        self._drop_channel()
        if self._credentials is None:
            self._channel = grpc.insecure_channel(address, channel_options())
        else:
            self._channel = grpc.secure_channel(address, self._credentials, channel_options())
        within_s = min(CONNECT_S, max(0.1, deadline - time.monotonic()))
        described = self._unary("Describe", message("DescribeRequest")(), within_s)
        found = (specs_of(described.obs), specs_of(described.action))
        settings = self._settings
        request = message("OpenRequest")(
            client=settings.client,
            num_envs=settings.num_envs,
            fingerprint=settings.fingerprint or described.fingerprint,
            explore=settings.explore,
            store=settings.store,
            resume=self._secret,
            control_hz=settings.control_hz,
            idempotency_key=self._key,
        )
        opened = self._unary("Open", request, within_s)
        self.description = described
        self.warning = opened.warning
        self._secret = opened.secret
        self._key = os.urandom(16)
        if self._dialogue is None:
            self._dialogue = Dialogue(*found, settings.num_envs, compress=settings.compress)
        elif found != (self._talk.obs, self._talk.action):
            raise ClientError(f"the gateway at {address} has another policy; open a new session")
        self._questions = queue.SimpleQueue()
        stream = self._channel.stream_stream(
            method(SERVICE, "ActStream"),
            request_serializer=message("ActStreamRequest").SerializeToString,
            response_deserializer=message("ActStreamResponse").FromString,
        )
        self._answers = stream(iter(self._questions.get, None), metadata=self._with_secret())
        for again in self._talk.after_break(opened.position):
            self._ask(again, deadline)

    def _unary(self, name: str, request: Any, within_s: float) -> Any:
        assert self._channel is not None
        call = self._channel.unary_unary(
            method(SERVICE, name),
            request_serializer=type(request).SerializeToString,
            response_deserializer=message(f"{name}Response").FromString,
        )
        return call(request, timeout=within_s, metadata=self._with_secret(), wait_for_ready=True)

    def _with_secret(self) -> tuple[Any, ...]:
        own = ((SESSION_KEY, self._secret),) if self._secret else ()
        return (*self._metadata, *own)

    def _stop_stream(self) -> None:
        self._questions.put(None)
        if self._answers is not None:
            for _ in self._answers:
                pass

    def _drop_channel(self) -> None:
        self._questions.put(None)
        if self._answers is not None:
            self._answers.cancel()
        if self._channel is not None:
            self._channel.close()
        self._answers = None
        self._channel = None


class _StreamEndedError(grpc.RpcError):
    """The server ended the stream."""


def _check_retried(error: grpc.RpcError) -> None:
    """Raises:
    RefusedError: If asking again will not help.
    """
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNAVAILABLE
    if code not in RETRIED:
        raise RefusedError(code.name, error.details() or code.name) from error
