"""How a client reaches a gateway, and what it does when replay wants no more rows."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc

from worldloom_client.errors import ClientError
from worldloom_client.wire import MAX_MESSAGE_BYTES

__all__ = [
    "BACKOFF_S",
    "MAX_BACKOFF_S",
    "Settings",
    "backoff_s",
    "channel_options",
    "credentials",
]

BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
HOLDS = ("wait", "act")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One session.

    Args:
        num_envs: Envs that ask.
        client: Label for the run's logs and metrics.
        explore: Act with the noise of training; by default where the server does.
        store: Let rows enter replay; by default where the server stores any.
        fingerprint: Of the specs that this program was written for; None takes any.
        token: Bearer token, or a file that holds one.
        ca: File with the certificate of who signed the server's; needed with TLS.
        certificate, key: Files of the client's own, where the server asks for one.
        timeout_s: How long a call may take, reconnecting included.
        on_hold: When the train ratio wants no more rows: ``wait``, or ``act`` on and leave rows
            out of replay until the next episode.
        compress: Send large arrays compressed; for slow networks.
        control_hz: Decisions per second that are needed; the server warns when it is too slow.

    Raises:
        ClientError: If a value cannot be.
    """

    num_envs: int = 1
    client: str = "client"
    explore: bool | None = None
    store: bool | None = None
    fingerprint: str | None = None
    token: str | Path | None = None
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    timeout_s: float = 60.0
    on_hold: Literal["wait", "act"] = "wait"
    compress: bool = False
    control_hz: float = 0.0

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ClientError(f"num_envs must be >= 1, got {self.num_envs}")
        if not LABEL.fullmatch(self.client):
            raise ClientError(f"client must be letters, digits, _ . or -, got {self.client!r}")
        if self.on_hold not in HOLDS:
            raise ClientError(f"on_hold must be one of {', '.join(HOLDS)}, got {self.on_hold!r}")
        if not self.timeout_s > 0:
            raise ClientError(f"timeout_s must be > 0, got {self.timeout_s}")
        if (self.certificate is None) != (self.key is None):
            raise ClientError("certificate and key go together: name both, or none")


def credentials(settings: Settings) -> tuple[grpc.ChannelCredentials | None, tuple[Any, ...]]:
    """Credentials of the channel (None for plain text) and metadata of every call.

    Raises:
        ClientError: If a file cannot be read, or a token would travel in plain text.
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
    return grpc.ssl_channel_credentials(root, *own), metadata


def channel_options() -> list[tuple[str, int]]:
    """Limits and keep-alive of a channel."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def backoff_s(tries: int) -> float:
    """Seconds before the next try: 0.1 doubling up to 2, half of it by chance."""
    longest = min(MAX_BACKOFF_S, BACKOFF_S * 2.0**tries)
    return longest * (0.5 + random.random() / 2)


def _token(given: str | Path) -> str:
    path = Path(given)
    if isinstance(given, Path) or os.sep in given:
        return _read(path, "token").decode().strip()
    return given


def _read(path: str | Path, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ClientError(f"{what}: {path} cannot be read ({error.strerror})") from error
