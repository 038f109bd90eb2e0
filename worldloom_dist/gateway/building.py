"""From a plan to a gateway's parts: the same in both runtimes, and where a checkpoint is served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.loopback import address_text
from worldloom.core.sequence import PolicyVersion
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.contract import Contract, Limits
from worldloom_dist.gateway.decisions import Decisions
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.server import Access
from worldloom_dist.run.config import GatewayConfig
from worldloom_dist.run.plan import Plan, role_seed

__all__ = ["KEY_FILE", "access_of", "build_gateway", "contract_of"]

KEY_FILE = "gateway.key"
"""In the run folder: signs the secrets of sessions."""


def access_of(config: GatewayConfig) -> Access:
    """Who may come in.

    Raises:
        ConfigurationError: If a file has an empty name, which would leave the door open.
    """
    return Access(
        host=config.host,
        certificate=_path("tls_cert", config.tls_cert),
        key=_path("tls_key", config.tls_key),
        token_file=_path("token_file", config.token_file),
        client_ca=_path("client_ca", config.client_ca),
    )


def contract_of(plan: Plan, features: Sequence[str], index: int = 0) -> Contract:
    """What the gateway number ``index`` of a run promises."""
    config = plan.config
    first = config.gateway_port or 0
    return Contract(
        env_spec=plan.env_spec,
        env=plan.env.env,
        columns=plan.columns,
        run_id=plan.run_id,
        agent=plan.agent.name,
        software=_software(),
        features=features,
        limits=Limits(lease_s=config.gateway.lease_s, max_rows_per_chunk=config.actors.chunk_rows),
        others=[
            address_text(config.gateway.host, first + other)
            for other in range(config.gateways)
            if other != index
        ],
    )


def build_gateway(
    plan: Plan,
    ask: Callable[[ActRequest], Awaitable[ActReply]],
    *,
    index: int = 0,
    incarnation: int = 0,
    features: Sequence[str] = ("store", "push", "explore", "zlib", "zstd"),
    version: Callable[[], PolicyVersion] | None = None,
    **more: Any,
) -> Gateway:
    """The gateway number ``index`` of a run.

    Args:
        plan: Of the run.
        ask: Decides, once there are weights.
        index: Which gateway.
        incarnation: Of its process.
        features: What it can do.
        version: The weights that act; by default those that acted last.
        **more: As for :class:`Gateway`.
    """
    decisions = Decisions(
        ask,
        plan.env_spec,
        plan.columns,
        seed=role_seed(plan, "gateway", index, incarnation),
        random_prefill=plan.spec.random_prefill and "store" in features,
    )
    return Gateway(
        contract_of(plan, features, index),
        decisions,
        version or (lambda: decisions.version),
        index=index,
        incarnation=incarnation,
        chunk_rows=plan.config.actors.chunk_rows,
        max_chunk_age_s=plan.config.actors.max_chunk_age_s,
        may_explore="explore" in features,
        **more,
    )


def _path(field: str, text: str | None) -> Path | None:
    if text == "":
        raise ConfigurationError(
            f"gateway.{field}: got an empty name, expected that of a file; name it, or leave "
            f"--gateway.{field.replace('_', '-')} away"
        )
    return None if text is None else Path(text)


def _software() -> str:
    try:
        return f"worldloom-dist {metadata.version('worldloom-dist')}"
    except metadata.PackageNotFoundError:
        return "worldloom-dist"
