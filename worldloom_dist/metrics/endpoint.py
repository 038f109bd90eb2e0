"""The Prometheus endpoint: ``/metrics`` over HTTP from a thread, and the page of the run beside it,
with a password if there is one.

``/healthz`` answers without one, for probes; it says nothing of the run. The secret comes from a
file or from the environment and lives in memory only: it is never an argument of a process, and
never logged.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from prometheus_client.exposition import make_wsgi_app
from prometheus_client.registry import Collector, CollectorRegistry

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.plain_files import read_plain
from worldloom_dist.metrics.http_server import make_bounded_server

__all__ = ["AUTH_VARIABLE", "Page", "is_loopback", "read_secret", "serve", "serve_near"]

AUTH_VARIABLE = "WORLDLOOM_METRICS_AUTH"
MIN_SECRET_CHARS = 8
PORTS_TRIED = 50
UNAUTHORIZED = (
    b"401: send the token or password of this endpoint; a browser asks for it where the secret is "
    b"USER:PASSWORD\n"
)
FORBIDDEN = (
    b"403: this endpoint answers at an address or at localhost; to read it by another name, set "
    b"--metrics-auth-file\n"
)
Answer = Iterable[bytes]


class Page(Protocol):
    """A WSGI application for some paths beside ``/metrics``."""

    def answers(self, path: str) -> bool:
        """True for a path of its own."""

    def __call__(self, environ: dict[str, Any], start: Any) -> Answer:
        """Answer a request for such a path."""


def read_secret(path: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """The secret of the endpoint: the first line of a file, else of the environment, else none.

    Returns:
        A bearer token, ``USER:PASSWORD`` for basic authentication, or an empty text when anyone
        may read.

    Raises:
        ConfigurationError: If the file cannot be read or is readable by all users, or the secret is
            too short to be one.
    """
    if path is None:
        text = environment.get(AUTH_VARIABLE)
        home = AUTH_VARIABLE
    else:
        home = f"metrics_auth_file: {path}"
        try:
            text = read_plain(path).decode()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"metrics_auth_file: {path} cannot be read ({type(error).__name__})"
            ) from error
        if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigurationError(
                f"metrics_auth_file: all users may read or write {path} (mode "
                f"{stat.S_IMODE(mode):04o}); run: chmod 600 {path} (for a Kubernetes secret set "
                "defaultMode: 0400)"
            )
    if text is None:
        return ""
    secret = (text.splitlines() or [""])[0].strip()
    if len(secret) < MIN_SECRET_CHARS or not secret.isascii():
        raise ConfigurationError(
            f"{home} must hold a token or USER:PASSWORD of at least "
            f"{MIN_SECRET_CHARS} ASCII characters"
        )
    return secret


def serve(
    hub: Collector, host: str, port: int, secret: str = "", page: Page | None = None
) -> tuple[Any, int]:
    """Serve ``/metrics`` from a thread.

    Args:
        hub: What is scraped.
        host, port: Where it listens; port 0 takes a free one.
        secret: As :func:`read_secret` gives it; it guards the page too.
        page: Answers at ``/`` and below; without one ``/`` answers as ``/metrics``.

    Returns:
        The server (call ``shutdown()`` and ``server_close()``) and the port it got.

    Raises:
        OSError: If the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(hub)
    is_private = is_loopback(host) and not secret
    app = _guarded(make_wsgi_app(registry), secret, page, is_private=is_private)
    server = make_bounded_server(host, port, app)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server, int(server.server_port)


def serve_near(
    hub: Collector, host: str, port: int, secret: str = "", page: Page | None = None
) -> tuple[Any, int]:
    """:func:`serve` at a port or, when that was taken meanwhile, at the next free one: metrics
    never end a run.

    Returns:
        The server and its port; ``(None, 0)`` for port 0, and where no port is free.
    """
    for candidate in range(port, port + PORTS_TRIED) if port else ():
        try:
            return serve(hub, host, candidate, secret, page)
        except OSError:
            continue
    return None, 0


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches. A name does not count, but ``localhost``:
    where it leads may change.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "", "0.0.0.0", "127.example.org")]
        [True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_foreign(header: str) -> bool:
    """True when a Host header names another machine: a page of the web whose name was led to this
    address (DNS rebinding) has its own name there. An address or ``localhost`` is no such name.
    """
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:  # no host at all, as [x
        return True
    if host in ("", "localhost"):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _guarded(
    app: Any, secret: str, page: Page | None, *, is_private: bool
) -> Callable[[dict[str, Any], Any], Answer]:
    def answer(environ: dict[str, Any], start: Any) -> Answer:
        """Answer as a WSGI application: health to anyone, the rest to who may see it."""
        path = environ.get("PATH_INFO", "/")
        if path == "/healthz":
            start("200 OK", [("Content-Type", "text/plain")])
            return [b"ok\n"]
        if secret and not _is_allowed(environ.get("HTTP_AUTHORIZATION", ""), secret):
            scheme = 'Basic realm="metrics"' if ":" in secret else "Bearer"
            start(
                "401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", scheme)]
            )
            return [UNAUTHORIZED]
        if is_private and _is_foreign(environ.get("HTTP_HOST", "")):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [FORBIDDEN]
        is_read = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if is_read and page is not None and page.answers(path):
            return page(environ, start)
        if path not in ("/", "/metrics") or not is_read:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"404: the page of the run is at /, its metrics are at /metrics\n"]
        result: Answer = app(environ, start)
        return result

    return answer


def _is_allowed(header: str, secret: str) -> bool:
    """Compare in constant time."""
    scheme, _, given = header.partition(" ")
    if ":" not in secret:
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(), secret.encode()
        )
    if scheme.lower() != "basic":
        return False
    try:
        decoded = base64.b64decode(given.strip(), validate=True)
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(decoded, secret.encode())
