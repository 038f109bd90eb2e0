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
import queue
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from worldloom_client.dialogue import Action
from worldloom_client.errors import ClientError, UnavailableError
from worldloom_client.settings import Settings, backoff_s, channel_options, credentials
from worldloom_client.state import (
    ASK_HOLD,
    CONNECT_S,
    SERVICE,
    SessionState,
    check_retried,
    plain,
    single,
)
from worldloom_client.wire import SESSION_KEY, Spec, message, method

__all__ = ["Session", "connect"]

WATCH_STREAM_EVERY_S = 0.2


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
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self._addresses = [part.strip() for part in address.split(",") if part.strip()]
        if not self._addresses:
            raise ClientError("address: name at least one HOST:PORT")
        self._settings = settings
        self._credentials, self._metadata = credentials(settings)
        self._state = SessionState(settings)
        self._channel: Any = None
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: Any = None
        self._number = 0
        self._is_closed = False
        self._watch: _Watch | None = None
        try:
            self._reconnect(time.monotonic() + settings.timeout_s)
        except BaseException:
            self._drop_channel()
            raise

    @property
    def description(self) -> Any:
        """What the server says of itself, a ``DescribeResponse``."""
        return self._state.description

    @property
    def version(self) -> tuple[int, int]:
        """Incarnation and update of the weights that acted last; ``(0, 0)`` for none."""
        return self._state.version

    @property
    def warning(self) -> str:
        """What the server said when it opened the session; usually nothing."""
        return self._state.warning

    @property
    def streams(self) -> list[tuple[int, int]]:
        """``(slot, incarnation)`` of the session's rows in replay, at every server that it had."""
        return self._state.streams

    @property
    def obs_specs(self) -> list[Spec]:
        """Arrays of an observation, in order."""
        return self._state.dialogue.obs

    @property
    def action_specs(self) -> list[Spec]:
        """Arrays of an action, in order."""
        return self._state.dialogue.action

    @property
    def rows_skipped(self) -> int:
        """Rows that were left out of replay while it wanted none."""
        return self._state.dialogue.rows_skipped

    @property
    def stored(self) -> list[int]:
        """Per env the rows that are stored or were left out, as far as is known here."""
        return self._state.dialogue.stored

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
        named = single(obs, "obs", self.obs_specs)
        rows = {key: np.asarray(value)[None] for key, value in named.items()}
        flags = (np.array([terminated]), np.array([truncated]))
        return plain(self.act_many(rows, np.array([reward], np.float32), *flags, envs=[env]))

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
        self._check_open()
        talk = self._state.dialogue
        asked = list(range(self._settings.num_envs)) if envs is None else list(envs)
        is_held = self._wait_while_held()
        request = talk.question(asked, obs, reward, terminated, truncated, skip_store=is_held)
        self._ask_until(request)
        return talk.actions(request)

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
        named = single(action, "action", self.action_specs)
        self._state.dialogue.executed(env, named, source)

    def abandon(self, env: int = 0) -> None:
        """The episode of ``env`` ends without a last observation and counts as truncated."""
        self._state.dialogue.abandon(env)

    def keep_alive(self) -> None:
        """Renew the lease while there is nothing to ask."""
        self._check_open()
        self._ask_until(ASK_HOLD)

    def close(self) -> None:
        """End the session: what is open is stored."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._channel is not None and self._state.secret:
                self._questions.put(None)
                closed = self._unary("Close", message("CloseRequest")(), CONNECT_S)
                for position in closed.position:
                    self._state.dialogue.stored_until(position.env, position.stored)
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

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientError("the session is closed; open another one")

    def _wait_while_held(self) -> bool:
        """True when this row is to stay out of replay."""
        while (hold_s := self._state.hold_s) > 0:
            if self._settings.on_hold == "act":
                return True
            time.sleep(hold_s)
            self._ask_until(ASK_HOLD)
        return False

    def _ask_until(self, request: Any) -> None:
        """Ask, through as many breaks as there is time for."""
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            try:
                if self._answers is None:
                    self._reconnect(deadline)  # asks again what is not stored, this question too
                    if len(request.env):
                        return
                self._ask(request, deadline)
                return
            except grpc.RpcError as error:
                check_retried(error)
                self._drop_channel()

    def _ask(self, request: Any, deadline: float) -> None:
        """Ask, and take the answer.

        Raises:
            grpc.RpcError: If the stream breaks.
            RefusedError: If the server says no.
        """
        self._number += 1
        assert self._watch is not None
        self._watch.deadline = deadline
        self._questions.put(message("ActStreamRequest")(number=self._number, request=request))
        answer = next(self._answers, None)
        self._watch.deadline = None
        if answer is None:
            raise _StreamEndedError
        self._state.take(request, answer)

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
                    check_retried(error)
                    last = error
            if time.monotonic() >= deadline:
                break
            time.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        self._drop_channel()
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
        request = self._state.open_request(described)
        response = self._unary("Open", request, within_s)
        again = self._state.opened(request, described, response, address)
        self._questions = queue.SimpleQueue()
        stream = self._channel.stream_stream(
            method(SERVICE, "ActStream"),
            request_serializer=message("ActStreamRequest").SerializeToString,
            response_deserializer=message("ActStreamResponse").FromString,
        )
        self._answers = stream(iter(self._questions.get, None), metadata=self._with_secret())
        self._watch = _Watch(self._answers)
        for question in again:
            self._ask(question, deadline)

    def _unary(self, name: str, request: Any, within_s: float) -> Any:
        call = self._channel.unary_unary(
            method(SERVICE, name),
            request_serializer=type(request).SerializeToString,
            response_deserializer=message(f"{name}Response").FromString,
        )
        return call(request, timeout=within_s, metadata=self._with_secret())

    def _with_secret(self) -> tuple[Any, ...]:
        secret = self._state.secret
        return (*self._metadata, *(((SESSION_KEY, secret),) if secret else ()))

    def _drop_channel(self) -> None:
        self._questions.put(None)
        if self._watch is not None:
            self._watch.end()
        if self._answers is not None:
            self._answers.cancel()
        if self._channel is not None:
            self._channel.close()
        self._watch = None
        self._answers = None
        self._channel = None


class _Watch:
    """Cancels a stream whose answer is late; one thread for each stream, so that no question pays
    for a timer.
    """

    def __init__(self, stream: Any) -> None:
        self.deadline: float | None = None
        self._is_over = threading.Event()
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), stream, self._is_over), daemon=True
        )
        thread.start()

    def end(self) -> None:
        """The stream is over."""
        self._is_over.set()


def _watch(owner: weakref.ref[_Watch], stream: Any, is_over: threading.Event) -> None:
    while not is_over.wait(WATCH_STREAM_EVERY_S):
        watch = owner()
        if watch is None:
            return
        if watch.deadline is not None and time.monotonic() > watch.deadline:
            stream.cancel()
            return


class _StreamEndedError(grpc.RpcError):  # type: ignore[misc]
    """The server ended the stream."""
