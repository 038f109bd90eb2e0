"""The connection of a blocking session: opens it at one of its addresses, asks over one stream, and
comes back after a break, asking again what is not stored.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from worldloom_client.channel import backoff_s, credentials, open_channel, unavailable
from worldloom_client.errors import ClientError, UnavailableError
from worldloom_client.settings import addresses_of
from worldloom_client.state import CONNECT_S, SERVICE, SessionState, check_retried
from worldloom_client.wire import SESSION_KEY, message, method

__all__ = ["Line", "Returner"]

WATCH_STREAM_EVERY_S = 0.2
TRY_FOR_S = 30.0
RETURNER_ENDS_WITHIN_S = 1.0


class Line:
    """See the module; used by one thread at a time.

    Args:
        address: ``HOST:PORT``; several with commas are tried in turn.
        state: Of the session.
    """

    def __init__(self, address: str, state: SessionState) -> None:
        self.addresses = addresses_of(address)
        self._state = state
        self._timeout_s = state.settings.timeout_s
        self._credentials, self._metadata = credentials(state.settings)
        self._channel: Any = None
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: Any = None
        self._number = 0
        self._watch: _Watch | None = None

    @property
    def is_up(self) -> bool:
        """False after a break."""
        return self._answers is not None

    def ask_until(self, request: Any) -> None:
        """Ask, through as many breaks as there is time for.

        Raises:
            RefusedError, UnavailableError: If the server says no, or none answers in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                if not self.is_up:
                    self.reconnect(deadline)  # asks again what is not stored, this question too
                    if len(request.env):
                        return
                self._ask(request, deadline)
                return
            except grpc.RpcError as error:
                check_retried(error)
                self.drop()
                if time.monotonic() >= deadline:
                    settings = self._state.settings
                    raise unavailable(self.addresses, self._timeout_s, error, settings) from error

    def ask_once(self, request: Any, within_s: float) -> bool:
        """Ask; False when no answer came within the time, and the line is down then.

        Raises:
            RefusedError: If the server says no.
        """
        try:
            self._ask(request, time.monotonic() + within_s)
        except grpc.RpcError as error:
            check_retried(error)
            self.drop()
        return self.is_up

    def reconnect(self, deadline: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Open the session, or resume it, and ask again what is not stored.

        Args:
            deadline: Until when, by the monotonic clock.
            is_over: Looked at between two tries: True gives up.

        Raises:
            RefusedError, UnavailableError: If that does not succeed before ``deadline``.
        """
        last: grpc.RpcError | None = None
        for tries in itertools.count():
            for address in self.addresses:
                try:
                    self._open(address, deadline)
                    return
                except grpc.RpcError as error:
                    check_retried(error)
                    last = error
            if time.monotonic() >= deadline or is_over():
                break
            time.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        self.drop()
        raise unavailable(self.addresses, self._timeout_s, last, self._state.settings)

    def close_session(self) -> None:
        """End the session: what is open is stored."""
        try:
            if self._channel is not None and self._state.secret:
                self._questions.put(None)
                closed = self._unary("Close", message("CloseRequest")(), CONNECT_S)
                for position in closed.position:
                    self._state.dialogue.stored_until(position.env, position.stored)
        except grpc.RpcError:
            pass  # its lease ends it
        finally:
            self.drop()

    def drop(self) -> None:
        """Let go of the channel; the session stays."""
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
        try:
            answer = next(self._answers, None)
        except grpc.RpcError:
            raise
        except BaseException:  # Ctrl-C: this answer, still on its way, is none to the next question
            self.drop()
            raise
        self._watch.deadline = None
        if answer is None or answer.number != self._number:
            raise _StreamEndedError
        self._state.take(request, answer)

    def _open(self, address: str, deadline: float) -> None:
        self.drop()
        self._channel = open_channel(address, self._credentials)
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
        answers = stream(iter(self._questions.get, None), metadata=self._with_secret())
        self._watch = _Watch(answers, self._state.settings.answer_within_s)
        self._answers = answers
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


class Returner:
    """Brings a line back in a thread of its own, while its session acts by itself.

    Args:
        line: No one else uses it until :attr:`is_done`.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._error: ClientError | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="returner", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """True when the line is up again, or never will be."""
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises:
        ClientError: If the line is not up: why it never will be.
        """
        if self._error is not None:
            raise self._error

    def stop(self) -> bool:
        """Give up; True when the thread has ended. If it has not, it drops the line when it
        does.
        """
        self._is_over = True
        self._thread.join(RETURNER_ENDS_WITHIN_S)
        return self.is_done

    def _run(self) -> None:
        while not self._is_over:
            try:
                self._line.reconnect(time.monotonic() + TRY_FOR_S, lambda: self._is_over)
                break
            except UnavailableError:
                continue
            except ClientError as error:
                self._error = error
                break
        if self._is_over:
            self._line.drop()


class _Watch:
    """Cancels a stream whose answer is late; one thread for each stream, so that no question pays
    for a timer.
    """

    def __init__(self, stream: Any, least_s: float) -> None:
        self.deadline: float | None = None
        self._is_over = threading.Event()
        every_s = min(WATCH_STREAM_EVERY_S, least_s / 4)
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), stream, self._is_over, every_s), daemon=True
        )
        thread.start()

    def end(self) -> None:
        """The stream is over."""
        self._is_over.set()


def _watch(
    owner: weakref.ref[_Watch], stream: Any, is_over: threading.Event, every_s: float
) -> None:
    while not is_over.wait(every_s):
        watch = owner()
        if watch is None:
            return
        deadline = watch.deadline  # read once: an answer sets it to None meanwhile
        if deadline is not None and time.monotonic() > deadline:
            stream.cancel()
            return


class _StreamEndedError(grpc.RpcError):  # type: ignore[misc]
    """The server ended the stream."""
