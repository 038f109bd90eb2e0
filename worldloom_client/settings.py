"""How a client reaches a gateway, and what it does when replay wants no more rows or the line is
cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldloom_client.errors import ClientError

__all__ = ["HOLDS", "Settings", "addresses_of"]

LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
HOLDS = ("wait", "act", "spool")
LAST_PORT = 65_535


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
            out of replay until the next episode, or act on and ``spool`` them to disk, from where
            they are pushed when replay wants them.
        spool: Folder of ``spool``; belongs to one process at a time. What is left in it is pushed
            by the next one.
        spool_bytes: Most bytes in it. Rows for which there is no room are left out, and counted.
        fallback: ``fallback(obs, env)`` chooses the action, as ``act`` returns it, when no answer
            came within ``answer_within_s`` or the line is cut: the client goes on at once, and
            comes back by itself. Without it, calls wait for ``timeout_s``.
        answer_within_s: See there.
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
    on_hold: Literal["wait", "act", "spool"] = "wait"
    spool: str | Path | None = None
    spool_bytes: int = 256 * 2**20
    fallback: Callable[[Any, int], Any] | None = None
    answer_within_s: float = 1.0
    compress: bool = False
    control_hz: float = 0.0

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ClientError(f"num_envs must be >= 1, got {self.num_envs}")
        if not LABEL.fullmatch(self.client):
            raise ClientError(f"client must be letters, digits, _ . or -, got {self.client!r}")
        if self.on_hold not in HOLDS:
            raise ClientError(f"on_hold must be one of {', '.join(HOLDS)}, got {self.on_hold!r}")
        for name in ("timeout_s", "spool_bytes", "answer_within_s"):
            if not getattr(self, name) > 0:
                raise ClientError(f"{name} must be > 0, got {getattr(self, name)}")
        if (self.certificate is None) != (self.key is None):
            raise ClientError("certificate and key go together: name both, or none")
        if self.on_hold == "spool" and self.spool is None:
            raise ClientError("spool: on_hold is 'spool', so name a folder for the rows")
        if self.fallback is not None and self.on_hold == "wait":
            raise ClientError(
                "fallback: with on_hold 'wait' the client waits for its answers; say 'act' to "
                "leave out the rows that the fallback makes, or 'spool' to push them later"
            )


def addresses_of(text: str) -> list[str]:
    """``HOST:PORT``, several with commas.

    Raises:
        ClientError: If there is none, or one is something else.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ClientError("address: name at least one HOST:PORT")
    for address in found:
        host, _, port = address.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 1 <= int(port) <= LAST_PORT
        if not host or not is_port or ("/" in host) or (":" in host and host[0] != "["):
            raise ClientError(
                f"address: got {address!r}, expected HOST:PORT with a port from 1 to {LAST_PORT}, "
                "for example 127.0.0.1:50051 or [::1]:50051"
            )
    return found
