"""What a gateway promises its clients: arrays in and out, and limits."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_client.wire import (
    MAX_MESSAGE_BYTES,
    NUMBER_OF,
    Spec,
    fingerprint,
    message,
    to_message,
)
from worldloom_dist.gateway.refusal import RefusalError

__all__ = ["Contract", "Limits", "check_specs", "version_message"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one gateway takes.

    Attributes:
        max_envs, max_sessions: Envs of a session, and sessions.
        max_message_bytes: Of a message.
        max_rows_per_chunk: Of a chunk that is pushed: the train ratio admits no more at once.
        lease_s: Silence after which a session ends.
        held_chunks, refused_chunks: Unstored rows of an env, in chunks: from the first on clients
            are asked to wait, from the second on their rows are refused.
    """

    max_envs: int = 256
    max_sessions: int = 1024
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_rows_per_chunk: int = 64
    lease_s: float = 10.0
    held_chunks: int = 2
    refused_chunks: int = 16


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the policy sees and does, and who serves it.

    Attributes:
        env_spec, env: What the env gives and takes, and its name as ``--env`` spells it.
        columns: Columns of a stored row, the agent's own included.
        run_id, agent, software: Names for people.
        features: What this server can do beyond deciding.
        limits: What it takes.
        others: Addresses of the run's other gateways.
    """

    env_spec: EnvSpec
    env: str
    columns: Mapping[str, ArraySpec]
    run_id: str = ""
    agent: str = ""
    software: str = ""
    features: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "obs", _specs(self.env_spec.obs))
        object.__setattr__(self, "action", _specs(self.env_spec.action))
        object.__setattr__(self, "fingerprint", fingerprint(self.obs, self.action))
        object.__setattr__(self, "row", _specs(self.env_spec.columns()))

    obs: list[Spec] = field(init=False)
    action: list[Spec] = field(init=False)
    fingerprint: str = field(init=False)
    row: list[Spec] = field(init=False)

    def describe(self, version: PolicyVersion) -> Any:
        """The ``DescribeResponse``."""
        limits = message("Limits")(
            max_message_bytes=self.limits.max_message_bytes,
            max_envs=self.limits.max_envs,
            max_rows_per_chunk=self.limits.max_rows_per_chunk if "push" in self.features else 0,
        )
        limits.lease.FromMilliseconds(int(self.limits.lease_s * 1000))
        return message("DescribeResponse")(
            run_id=self.run_id,
            agent=self.agent,
            env=self.env,
            software=self.software,
            obs=[to_message(spec) for spec in self.obs],
            action=[to_message(spec) for spec in self.action],
            version=version_message(version),
            limits=limits,
            features=self.features,
            fingerprint=self.fingerprint,
            others=self.others,
        )

    def check_fingerprint(self, given: str) -> None:
        """Refuse a client that was written for other arrays.

        Raises:
            RefusalError: Names the first key that differs.
        """
        if not given or given == self.fingerprint:
            return
        theirs = _entries(given)
        ours = _entries(self.fingerprint)
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                raise RefusalError(
                    "FAILED_PRECONDITION",
                    f"fingerprint: the client was written for {name} = "
                    f"{theirs.get(name, 'nothing')[:80]}, and this policy has "
                    f"{ours.get(name, 'nothing')}; use an env like {self.env}",
                )
        raise RefusalError(
            "FAILED_PRECONDITION",
            "fingerprint: the client names the same arrays in another order; use the order of "
            "DescribeResponse",
        )


def check_specs(spec: EnvSpec) -> None:
    """Refuse an env whose arrays cannot travel.

    Raises:
        ConfigurationError: Names the first one.
    """
    for group, specs in (("obs", spec.obs), ("action", spec.action)):
        for key, array in specs.items():
            if np.dtype(array.dtype) not in NUMBER_OF:
                allowed = ", ".join(str(dtype) for dtype in NUMBER_OF)
                raise ConfigurationError(
                    f"gateway: {group} {key!r} of {spec.name} has dtype {array.dtype}, which "
                    f"cannot travel; allowed: {allowed}"
                )


@functools.lru_cache(maxsize=64)
def version_message(version: PolicyVersion) -> Any:
    """A version as it travels; not to be changed."""
    return message("PolicyVersion")(incarnation=version.incarnation, update=version.update)


def _specs(specs: Mapping[str, ArraySpec]) -> list[Spec]:
    return [
        Spec(key, tuple(spec.shape), str(np.dtype(spec.dtype)), tuple(spec.num_classes))
        for key, spec in specs.items()
    ]


def _entries(text: str) -> dict[str, str]:
    found = {}
    for line in text.split("\n")[:1000]:
        name, _, rest = line.partition(" = ")
        found[name[:80]] = rest
    return found
