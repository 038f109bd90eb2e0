"""What of a run's surroundings is checked before anything is written or started: ports, addresses,
secrets, packages; and which flags have no effect.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.config import RunConfig

if TYPE_CHECKING:
    from worldloom_dist.run.plan import Plan

__all__ = [
    "check_address",
    "check_gateways",
    "check_watching",
    "choose_port",
    "is_open",
    "without_effect",
]

DEFAULT_PORT = 9464
PORTS_TRIED = 50


def without_effect(config: RunConfig) -> list[tuple[str, str]]:
    """Flags that were given and that this run does not use, with the reason."""
    given = [
        (
            "--inference central",
            "with --runtime local, where the policy lives beside its envs",
            config.runtime == "local" and config.inference == "central",
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


def choose_port(config: RunConfig) -> int:
    """The port of the metrics endpoint; 0 for none.

    Raises:
        ConfigurationError: If the user named a port that is taken.
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
        if not _is_free(config.metrics_host, config.metrics_port):
            raise ConfigurationError(
                f"metrics_port: {config.metrics_port} on {config.metrics_host} is in "
                "use; name another one, or leave the flag out "
                "to take the next free one, or 0 to serve no metrics"
            )
        return config.metrics_port
    free = (
        port
        for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
        if _is_free(config.metrics_host, port)
    )
    return next(free, 0)


def check_watching(config: RunConfig) -> None:
    """Refuse a secret of the endpoint that is none, and a sink whose package is missing.

    Raises:
        ConfigurationError, MissingDependencyError: With what to do.
    """
    from worldloom_dist.metrics.endpoint import read_secret
    from worldloom_dist.metrics.sinks import NEEDS, check_sinks

    read_secret(config.metrics_auth_file)
    check_sinks([name for name in NEEDS if getattr(config, name)])


def is_open(config: RunConfig) -> bool:
    """True when machines beside this one can read the endpoint without a password."""
    from worldloom_dist.metrics.endpoint import is_loopback, read_secret

    return not is_loopback(config.metrics_host) and not read_secret(config.metrics_auth_file)


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
        if config.address is None and not _is_free(config.gateway.host, port):
            raise ConfigurationError(
                f"gateway_port: nothing can listen at {config.gateway.host}:{port}; name another "
                "port, and an address of this machine"
            )


def check_address(config: RunConfig) -> None:
    """Refuse an address where nothing listens, before anything is written.

    Raises:
        ConfigurationError: If HOST:PORT does not accept a connection.
    """
    host, colon, port = (config.address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # none, or a word like auto, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=3.0).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: nothing answers at {config.address} ({error}); start a cluster there first"
        ) from error


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
