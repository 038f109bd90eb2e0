"""Opens the port: in plain text on the loopback, elsewhere only with TLS and a token."""

from __future__ import annotations

import ipaddress
import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.loopback import address_text
from worldloom.core.plain_files import read_plain
from worldloom_client.wire import PACKAGE, POOL
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.health import Health
from worldloom_dist.gateway.service import Authenticator, policy_service, replay_service

__all__ = ["Access", "GatewayServer"]

logger = logging.getLogger(__name__)

CALLS_END_WITHIN_S = 2.0
HANDSHAKE_MS = 10_000
"""For TLS and the beginning of HTTP/2: so long a silent connection keeps its descriptor."""
LEAST_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come in, and how.

    Attributes:
        host: Address to listen on.
        certificate, key: Files of the server's certificate chain and private key, PEM.
        token_file: File with the bearer token.
        client_ca: File with the certificate of who signs clients' certificates; clients need one
            then.
    """

    host: str = "127.0.0.1"
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    client_ca: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Refuse what is not safe, before anything is started.

        Raises:
            ConfigurationError: Says what is missing.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError(
                "gateway: tls_cert and tls_key go together: name both files, or none"
            )
        if not self.is_loopback and (self.certificate is None or self.token_file is None):
            raise ConfigurationError(
                f"gateway.host: {self.host} can be reached from other machines, so it needs "
                "--gateway.tls-cert, --gateway.tls-key and --gateway.token-file; name them, or "
                "listen on 127.0.0.1"
            )
        if self.client_ca is not None and self.certificate is None:
            raise ConfigurationError(
                "gateway.client_ca: clients can show a certificate only over TLS; name "
                "--gateway.tls-cert and --gateway.tls-key, too"
            )
        self.token()
        self.credentials()

    def token(self) -> str | None:
        """The bearer token; None where none is asked for.

        Raises:
            ConfigurationError: If the file cannot be read, is open to others, or holds none.
        """
        if self.token_file is None:
            return None
        data = _read(self.token_file, "token_file")
        if stat.S_IMODE(self.token_file.stat().st_mode) & 0o077:
            raise ConfigurationError(
                f"gateway.token_file: {self.token_file} can be read by others; say chmod 600 "
                f"{self.token_file}"
            )
        token = data.decode("ascii", "replace").strip()
        if len(token) < LEAST_TOKEN or not token.isprintable() or "\ufffd" in token:
            raise ConfigurationError(
                f"gateway.token_file: {self.token_file} must hold one token of at least "
                f"{LEAST_TOKEN} printable characters, for example from: openssl rand -hex 32"
            )
        return token

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS, where it is wanted.

        Raises:
            ConfigurationError: If a file cannot be read or is no PEM.
        """
        if self.certificate is None or self.key is None:
            return None
        chain = _read_pem(self.certificate, "tls_cert", b"CERTIFICATE")
        key = _read_pem(self.key, "tls_key", b"PRIVATE KEY")
        root = None
        if self.client_ca is not None:
            root = _read_pem(self.client_ca, "client_ca", b"CERTIFICATE")
        return grpc.ssl_server_credentials([(key, chain)], root, root is not None)


class GatewayServer:
    """A gateway behind a port; lives on an event loop.

    Args:
        gateway: Answers.
        access: Who may come in.
        services: More handlers, by the name of their service.
    """

    def __init__(
        self,
        gateway: Gateway,
        access: Access,
        services: Sequence[tuple[str, grpc.GenericRpcHandler]] = (),
    ) -> None:
        self.gateway = gateway
        self._access = access
        token = access.token()
        size = gateway.contract.limits.max_message_bytes
        self._server = grpc.aio.server(
            interceptors=[Authenticator(token)] if token is not None else [],
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ],
        )
        own = [(f"{PACKAGE}.PolicyService", policy_service(gateway))]
        if "push" in gateway.contract.features:
            own.append((f"{PACKAGE}.ReplayService", replay_service(gateway)))
        names = [name for name, _ in (*own, *services)]
        self.health = Health(names)
        handlers = [self.health.handler(), *(handler for _, handler in (*own, *services))]
        self._server.add_generic_rpc_handlers(handlers)
        if access.is_loopback:
            self._reflect(names)

    async def start(self, port: int) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: If the port is taken or the address is none of this machine.
        """
        address = address_text(self._access.host, port)
        credentials = self._access.credentials()
        try:
            found: int = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise ConfigurationError(
                f"gateway_port: nothing can listen at {address} ({error}); name another port"
            ) from error
        await self._server.start()
        return found

    async def stop(self, drain_s: float) -> int:
        """Stop taking calls, store what there is; returns the rows that could not be stored."""
        self.health.set(is_serving=False)
        left = await self.gateway.drain(drain_s)
        await self._server.stop(CALLS_END_WITHIN_S)
        return left

    async def abort(self) -> None:
        """End at once: calls are cut off, and rows that are not stored are lost here."""
        await self._server.stop(None)

    def _reflect(self, names: Sequence[str]) -> None:
        """Let tools look at the services, where the package for it is installed."""
        try:
            from grpc_reflection.v1alpha import reflection
        except ImportError:
            return
        reflection.enable_server_reflection(
            [*names, reflection.SERVICE_NAME], self._server, pool=POOL
        )


def _read(path: Path, field: str) -> bytes:
    try:
        return read_plain(path)
    except OSError as error:
        raise ConfigurationError(
            f"gateway.{field}: {path} cannot be read ({error.strerror})"
        ) from error


def _read_pem(path: Path, field: str, kind: bytes) -> bytes:
    data = _read(path, field)
    if b"-----BEGIN" not in data or kind not in data:
        raise ConfigurationError(
            f"gateway.{field}: {path} holds no {kind.decode().lower()} in PEM form"
        )
    return data
