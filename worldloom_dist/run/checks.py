"""What of a run's surroundings is checked before anything is written or started: ports, addresses,
secrets, packages; and which flags have no effect.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
from typing import TYPE_CHECKING

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.loopback import IPV4, can_listen, usable_loopback
from worldloom_dist.run.config import RunConfig

if TYPE_CHECKING:
    from worldloom_dist.run.plan import Plan

__all__ = [
    "check_address",
    "check_gateways",
    "check_watching",
    "choose_port",
    "with_usable_hosts",
    "without_effect",
]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9464
PORTS_TRIED = 50
LOOPBACK_S = 5.0


def without_effect(config: RunConfig) -> list[tuple[str, str]]:
    """Flags that were given and that this run does not use, with the reason."""
    given = [
        (
            "--inference central",
            "with --runtime local, where the policy lives beside its envs",
            config.runtime == "local" and config.inference == "central",
        ),
        (
            "--actors.env-memory-gb",
            "with --runtime local, whose envs are in its own process",
            config.runtime == "local" and config.actors.env_memory_gb is not None,
        ),
        (
            "--inference-servers",
            "with --runtime local, where the policy lives beside its envs",
            config.runtime == "local" and config.inference_servers != RunConfig().inference_servers,
        ),
        (
            "--learner.standby on",
            "with --runtime local, which has one process",
            config.runtime == "local" and config.learner.standby == "on",
        ),
        (
            "--gateways",
            "without --gateway-port",
            config.gateway_port is None and config.gateways != RunConfig().gateways,
        ),
        (
            "--gateway.*",
            "without --gateway-port",
            config.gateway_port is None and config.gateway != RunConfig().gateway,
        ),
        (
            "--train-steps",
            "with an env: the run ends after --env-steps",
            not config.env.is_none and config.train_steps != RunConfig().train_steps,
        ),
    ]
    return [(flag, why) for flag, why, is_idle in given if is_idle]


def with_usable_hosts(config: RunConfig) -> RunConfig:
    """The same where it listens on the loopback of IPv4 and this machine has that of IPv6 alone."""
    return dataclasses.replace(
        config,
        metrics_host=usable_loopback(config.metrics_host),
        gateway=dataclasses.replace(config.gateway, host=usable_loopback(config.gateway.host)),
    )


def choose_port(config: RunConfig) -> int:
    """The port of the metrics endpoint; 0 for none: with a warning where none is free, and where
    nothing can listen at the loopback.

    Raises:
        ConfigurationError: If the user named a port that is taken, or no address of this machine.
    """
    if config.metrics_port == 0:
        return 0
    try:
        socket.getaddrinfo(config.metrics_host, None)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_host: {config.metrics_host!r} is no address of this machine ({error})"
        ) from error
    if config.metrics_port is not None:
        if not can_listen(config.metrics_host, config.metrics_port):
            raise ConfigurationError(
                f"metrics_port: {config.metrics_port} on {config.metrics_host} is in "
                "use; name another one, or leave the flag out "
                "to take the next free one, or 0 to serve no metrics"
            )
        return config.metrics_port
    if not can_listen(config.metrics_host, 0):
        if config.metrics_host == RunConfig().metrics_host:
            return 0  # a machine without a loopback; said when the run is announced
        raise ConfigurationError(
            f"metrics_host: nothing can listen at {config.metrics_host!r}, which is no address of "
            "this machine; name another one (ip addr shows them), or turn metrics off with "
            "--metrics-port 0"
        )
    for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        if can_listen(config.metrics_host, port):
            return port
    logger.warning(
        "the run serves no metrics and no page: the ports %d to %d on %s are all in use; name "
        "another one with --metrics-port",
        DEFAULT_PORT,
        DEFAULT_PORT + PORTS_TRIED - 1,
        config.metrics_host,
    )
    return 0


def check_watching(config: RunConfig) -> None:
    """Refuse an endpoint that other machines could read without a secret, a secret that is none,
    and a sink whose package is missing.

    Raises:
        ConfigurationError, MissingDependencyError: With what to do.
    """
    from worldloom_dist.metrics.endpoint import AUTH_VARIABLE, is_loopback, read_secret
    from worldloom_dist.metrics.sinks import NEEDS, check_sinks

    secret = read_secret(config.metrics_auth_file)
    if not secret and config.metrics_port != 0 and not is_loopback(config.metrics_host):
        raise ConfigurationError(
            f"metrics_host: other machines reach {config.metrics_host or 'all addresses'!r}, and "
            "who does could read page and metrics; add --metrics-auth-file FILE (a token or "
            f"USER:PASSWORD, mode 0600) or set {AUTH_VARIABLE}, leave --metrics-host out and read "
            "them over SSH, or turn them off with --metrics-port 0"
        )
    check_sinks([name for name in NEEDS if getattr(config, name)], config.sink)


def check_gateways(plan: Plan) -> None:
    """Refuse gateways that cannot be opened, or would not be safe, before anything is written.

    Raises:
        ConfigurationError: Says why, and what to do.
    """
    config = plan.config
    if config.gateway_port is None:
        return
    from worldloom_dist.gateway.building import access_of
    from worldloom_dist.gateway.contract import check_specs

    access_of(config.gateway).check()
    check_specs(plan.env_spec)
    for port in range(config.gateway_port, config.gateway_port + config.gateways):
        if config.address is None and not can_listen(config.gateway.host, port):
            raise ConfigurationError(
                f"gateway_port: nothing can listen at {config.gateway.host}:{port}; name another "
                "port, and an address of this machine"
            )


def check_address(config: RunConfig) -> None:
    """Refuse an address where nothing listens, before anything is written; of a private cluster
    the loopback, without which Ray waits for ever.

    Raises:
        ConfigurationError: If HOST:PORT does not accept a connection.
    """
    if config.address is None and config.runtime == "ray":
        _check_loopback()
        return
    host, colon, port = (config.address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # none, or a word like auto, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3.0).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: nothing answers at {config.address} ({error}); start a cluster there first"
        ) from error


def _check_loopback() -> None:
    try:
        with socket.create_server((IPV4, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: processes of this machine do not reach each other at 127.0.0.1 ({error}), "
            "where Ray starts; run: ip link set lo up (Ray needs IPv4 there, and does not "
            "start with IPv6 alone), name a cluster with --address, or add --runtime local"
        ) from error
