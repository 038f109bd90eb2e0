"""How a connection to a role is opened: both sides show that they have the key of the role, and
derive from it and from a nonce of each the keys of this one connection, one for each direction.

    role -> caller   nonce
    caller -> role   nonce, proof
    role -> caller   proof                       then frames (``rpc/frames.py``) both ways

So what was heard on one connection is worth nothing on another one, nor in the other direction.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import time
from typing import NamedTuple

from worldloom_dist.rpc.frames import FrameMac

__all__ = [
    "HANDSHAKE_S",
    "NONCE_BYTES",
    "PROOF_BYTES",
    "Endpoint",
    "Handshake",
    "Line",
    "connect",
    "tune",
    "uses_tls",
]

NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_S = 10.0
LOST_AFTER_S = 30
TRIES = 3
TRY_AGAIN_S = 0.1


class Endpoint(NamedTuple):
    """Where a role listens, and the key that opens a connection."""

    host: str
    port: int
    key: bytes


class Line(NamedTuple):
    """An open connection, and what authenticates the frames that are sent and received on it."""

    socket: socket.socket
    sent: FrameMac
    received: FrameMac


class Handshake:
    """What only the two ends of a connection can compute.

    Args:
        key: Of the role.
        role_nonce, caller_nonce: What the two have said, ``NONCE_BYTES`` each.
    """

    def __init__(self, key: bytes, role_nonce: bytes, caller_nonce: bytes) -> None:
        self._key = key
        self._nonces = role_nonce + caller_nonce

    @property
    def caller_proof(self) -> bytes:
        """What the caller says."""
        return self._derived(b"caller")

    @property
    def role_proof(self) -> bytes:
        """What the role says then."""
        return self._derived(b"role")

    def caller_frames(self) -> FrameMac:
        """Authenticates what the caller sends."""
        return FrameMac(self._derived(b"frames of the caller"))

    def role_frames(self) -> FrameMac:
        """Authenticates what the role sends."""
        return FrameMac(self._derived(b"frames of the role"))

    def _derived(self, what: bytes) -> bytes:
        return hmac.digest(self._key, what + self._nonces, "sha256")


def uses_tls() -> bool:
    """True where Ray encrypts, and a line of our own would not."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def connect(endpoint: Endpoint, timeout_s: float | None) -> Line:
    """Connect and let both sides show the key; try again when the role hangs up meanwhile, because
    it does so while strangers crowd it.

    Args:
        endpoint: As the role has told it.
        timeout_s: Of every later send and receive; None waits.

    Raises:
        OSError: If nothing listens there, or not what was looked for.
    """
    for repetition in range(1, TRIES):
        try:
            return _opened(endpoint, timeout_s)
        except (ConnectionResetError, BrokenPipeError):
            time.sleep(TRY_AGAIN_S * repetition)
    return _opened(endpoint, timeout_s)


def _opened(endpoint: Endpoint, timeout_s: float | None) -> Line:
    deadline = time.monotonic() + HANDSHAKE_S
    line = socket.create_connection((endpoint.host, endpoint.port), timeout=HANDSHAKE_S)
    try:
        tune(line)
        theirs = _read(line, NONCE_BYTES, deadline)
        ours = secrets.token_bytes(NONCE_BYTES)
        shared = Handshake(endpoint.key, theirs, ours)
        line.sendall(ours + shared.caller_proof)
        if not hmac.compare_digest(_read(line, PROOF_BYTES, deadline), shared.role_proof):
            raise ConnectionError("it does not have the key of the role")
        line.settimeout(timeout_s)
    except OSError:
        line.close()
        raise
    return Line(line, shared.caller_frames(), shared.role_frames())


def _read(line: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly this number of bytes.

    Raises:
        OSError: If the other side has hung up, or they did not come before ``deadline``, by the
            monotonic clock.
    """
    data = b""
    while len(data) < size:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no proof of the key came within {HANDSHAKE_S:g} s")
        line.settimeout(left_s)
        fresh = line.recv(size - len(data))
        if not fresh:
            raise ConnectionResetError("the other side has hung up")
        data += fresh
    return data


def tune(line: socket.socket) -> None:
    """Send at once, and notice a machine that is gone."""
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", LOST_AFTER_S * 1000),
    ):
        if hasattr(socket, name):  # Linux; elsewhere the deadline is what is left
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
