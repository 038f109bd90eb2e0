"""Channels to a gateway: what they show, their limits, and how long to wait between two tries. The
only modules that bring gRPC along are this one and those that import it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from worldloom_client.errors import ClientError, UnavailableError
from worldloom_client.settings import Settings
from worldloom_client.wire import MAX_MESSAGE_BYTES

__all__ = [
    "BACKOFF_S",
    "MAX_BACKOFF_S",
    "SHORT_BACKOFF_S",
    "SHORT_TRIES",
    "backoff_s",
    "channel_options",
    "credentials",
    "open_channel",
    "unavailable",
]

BACKOFF_S = 0.1
SHORT_BACKOFF_S = 0.4
SHORT_TRIES = 12
"""A server that is started again is back within seconds: this many tries come soon."""
MAX_BACKOFF_S = 2.0


CLOSED = "Socket closed"
HINTS = {
    CLOSED: "it closes the connection: one with TLS needs the setting ca",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: leave ca out",
    "certificate has expired": "its certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "its certificate was not signed by ca, or is for another host",
}
"""What gRPC says, and what that means."""


def credentials(settings: Settings) -> tuple[grpc.ChannelCredentials | None, tuple[Any, ...]]:
    """Credentials of the channel (None for plain text) and metadata of every call.

    Raises:
        ClientError: If a file cannot be read, or holds no certificate.
    """
    metadata: tuple[Any, ...] = ()
    if settings.token is not None:
        metadata = (("authorization", f"Bearer {_token(settings.token)}"),)
    if settings.ca is None and settings.certificate is None:
        return None, metadata
    own: tuple[bytes | None, bytes | None] = (None, None)
    if settings.certificate is not None and settings.key is not None:
        own = (_read(settings.key, "key"), _read(settings.certificate, "certificate"))
    root = None if settings.ca is None else _read(settings.ca, "ca")
    if root is not None and b"-----BEGIN CERTIFICATE" not in root:
        raise ClientError(f"ca: {settings.ca} holds no certificate in PEM form")
    return grpc.ssl_channel_credentials(root, *own), metadata


def unavailable(
    addresses: Sequence[str], within_s: float, error: grpc.RpcError | None, settings: Settings
) -> UnavailableError:
    """What to say when no gateway answered: the last thing that went wrong, and what helps."""
    details = error.details() if error is not None and hasattr(error, "details") else None
    why = " ".join((details or "no answer").split())
    for sign, told in HINTS.items():
        if sign in why and (settings.ca is None) == (sign == CLOSED):
            why = told
    where = ", ".join(addresses)
    return UnavailableError(f"no gateway answered at {where} within {within_s:g} s ({why})")


def open_channel(address: str, secured_by: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel of blocking calls."""
    if secured_by is None:
        return grpc.insecure_channel(address, channel_options())
    return grpc.secure_channel(address, secured_by, channel_options())


def channel_options() -> list[tuple[str, int]]:
    """Limits and keep-alive of a channel."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # how long one attempt may take, handshakes over a slow line included
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def backoff_s(tries: int) -> float:
    """Seconds before the next try: 0.1 doubling up to 0.4, later up to 2, half of it by chance."""
    longest = min(SHORT_BACKOFF_S, BACKOFF_S * 2.0 ** min(tries, SHORT_TRIES))
    if tries > SHORT_TRIES:
        longest = min(MAX_BACKOFF_S, SHORT_BACKOFF_S * 2.0 ** min(tries - SHORT_TRIES, SHORT_TRIES))
    return longest * (0.5 + random.random() / 2)


def _token(given: str | Path) -> str:
    """The token, or what the file holds that is named; no error repeats what may be a token."""
    token = str(given)
    if isinstance(given, Path):
        token = _read(given, "token").decode("ascii", "replace").strip()
    elif os.sep in given:
        try:
            token = Path(given).read_bytes().decode("ascii", "replace").strip()
        except OSError as error:
            raise ClientError(
                f"token: it holds {os.sep!r}, so it is the name of a file, which cannot be read "
                f"({error.strerror}); put such a token into a file, and name that"
            ) from None
    if not token or not token.isascii() or not token.isprintable():
        raise ClientError(
            "token: it must be one line of printable ASCII characters, in a file as well"
        )
    return token


def _read(path: str | Path, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ClientError(f"{what}: {path} cannot be read ({error.strerror})") from error
