"""The HTTP server of the endpoint: one thread per connection, and a bound on how many there are.

A connection says what it wants, is answered and ends. While there is room, one that says nothing
has ``QUIET_S``. Once ``MOST`` are open, who comes takes the place of the one that has said nothing
for the longest, of the address that has the most of them: so a crowd of silent connections ends its
own, and a scraper, which asks at once, is answered. Where all are being answered, one that has not
taken its answer for ``ANSWER_S`` ends, else who comes gets a 503.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

__all__ = ["MOST", "MOST_ASKED_BYTES", "make_bounded_server"]

logger = logging.getLogger(__name__)

MOST = 64
"""Connections, and so threads, at the same time."""
QUIET_S = 10.0
"""Silence after which a connection ends, in seconds."""
ANSWER_S = 10.0
"""For taking an answer while others wait for a place, in seconds."""
MOST_ASKED_BYTES = 64 * 1024
"""Of what a connection says before it is answered."""
BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\n\r\n"
    b"503: too many connections at the same time\n"
)


def make_bounded_server(host: str, port: int, app: Callable[..., Any]) -> WSGIServer:
    """A server that listens; ``serve_forever`` lets it answer.

    Args:
        host: An address or a name, of IPv4 or IPv6.
        port: 0 takes a free one.
        app: A WSGI application.

    Raises:
        OSError: If the port is taken, or there is no such address here.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = _IPv6Server if family == socket.AF_INET6 else _Server
    return make_server(host, port, app, server_class=kind, handler_class=_Handler)


@dataclass
class _Connection:
    host: str
    since: float
    is_asking: bool = True


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 2 * MOST

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[socket.socket, _Connection] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give it a thread, if there is a place."""
        if self._has_place(request, str(client_address[0])):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.0)  # the answer fits into the socket's buffer
            request.sendall(BUSY)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Its place is free."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is silent or gone is nothing to tell; anything else is."""
        is_clients = isinstance(sys.exception(), OSError)
        logger.log(
            logging.DEBUG if is_clients else logging.WARNING,
            "a connection from %s failed",
            client_address[0],
            exc_info=True,
        )

    def note_asked(self, request: socket.socket) -> None:
        """It has said what it wants."""
        with self._lock:
            if request in self._open:
                self._open[request].is_asking = False

    def _has_place(self, request: socket.socket, host: str) -> bool:
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= MOST:
                one = self._dispensable(now)
                if one is None:
                    return False
                del self._open[one]
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and ends
            self._open[request] = _Connection(host, now)
        return True

    def _dispensable(self, now: float) -> socket.socket | None:
        crowds = Counter(known.host for known in self._open.values() if known.is_asking)
        if crowds:
            host = crowds.most_common(1)[0][0]
            return next(
                one for one, known in self._open.items() if known.is_asking and known.host == host
            )
        oldest = next(iter(self._open))
        return oldest if now - self._open[oldest].since > ANSWER_S else None


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Writes no log line per scrape, and gives up on clients that say nothing, or too much."""

    def setup(self) -> None:
        """Silence ends it."""
        super().setup()
        self.connection.settimeout(QUIET_S)
        self.rfile = _Asked(self.rfile)  # type: ignore[assignment]

    def parse_request(self) -> bool:
        """Tell the server that the whole of it is here."""
        is_whole = super().parse_request()
        if is_whole:
            self.server.note_asked(self.request)  # type: ignore[attr-defined]
        return is_whole

    def get_stderr(self) -> Any:
        """Where an answer that failed is told of."""
        return _Log()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a header might hold the secret."""

    def address_string(self) -> str:
        """The address as it is: a reverse look-up of names can take seconds."""
        return str(self.client_address[0])


class _Asked:
    """What a connection says, line by line, but no more than ``MOST_ASKED_BYTES``."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = MOST_ASKED_BYTES

    def readline(self, size: int) -> bytes:
        """The next line, of ``size`` bytes at most.

        Raises:
            HTTPException: If it said too much; answered with 431.
        """
        line = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException(f"got more than {MOST_ASKED_BYTES} bytes")
        return line

    def close(self) -> None:
        """Nothing more is read."""
        self._file.close()


class _Log(io.TextIOBase):
    """Tracebacks of answers that failed; that a client does not take its answer is no fault."""

    def write(self, text: str) -> int:
        """Log a part of one."""
        is_clients = isinstance(sys.exception(), OSError)
        logger.log(logging.DEBUG if is_clients else logging.WARNING, "%s", text.rstrip())
        return len(text)
