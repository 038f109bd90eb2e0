"""The weight store as a Ray actor, and the door to it."""

from __future__ import annotations

import os
from typing import Any

import ray

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.learner.weight_store import LastVersions
from worldloom_dist.rpc.actor_client import ActorClient, RoleGoneError
from worldloom_dist.runtime.reporting import Reporter

__all__ = ["RemoteWeights", "WeightStoreRole"]


class WeightStoreRole:
    """Holds the last two versions in the object store, each put there once, and outlives the
    learner.
    """

    def __init__(self) -> None:
        self._versions: LastVersions[Any] = LastVersions()

    async def publish(self, snapshot: WeightsSnapshot) -> bool:
        """Take a version; False when it is not above the newest one (a dead learner's last
        words).
        """
        if not self._versions.accepts(snapshot.version):
            return False
        self._versions.put(snapshot.version, ray.put(snapshot))
        return True

    async def version(self) -> PolicyVersion:
        """The newest version."""
        return self._versions.version

    async def fetch(self) -> list[Any]:
        """A list with the newest reference (so that Ray does not copy it on the way), or an empty
        one.
        """
        return [] if self._versions.version == NO_POLICY else [self._versions.newest]

    async def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid()}

    async def run_forever(self) -> None:
        """Lasts as long as the process."""
        await Reporter("weights").emit_for_ever()


class RemoteWeights:
    """``ports.WeightSource`` and ``ports.WeightSink`` over the weight store."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._store = ActorClient("weights-0")
        self._timeout_s = timeout_s

    def version(self) -> PolicyVersion:
        """The newest version."""
        version: PolicyVersion = self._store.call(
            "version", timeout_s=self._timeout_s, patience_s=0.0
        )
        return version

    def fetch(self) -> WeightsSnapshot:
        """The newest weights, one copy per node, read-only.

        Raises:
            StateError: If nothing has been published.
        """
        references = self._store.call("fetch", timeout_s=self._timeout_s, patience_s=0.0)
        if not references:
            raise StateError("no weights have been published yet")
        snapshot: WeightsSnapshot = ray.get(references[0], timeout=self._timeout_s)
        return snapshot

    async def aversion(self, otherwise: PolicyVersion) -> PolicyVersion:
        """:meth:`version` for an event loop; ``otherwise`` when the store is away."""
        try:
            version: PolicyVersion = await self._store.acall(
                "version", timeout_s=self._timeout_s, patience_s=0.0
            )
        except RoleGoneError:
            return otherwise
        return version

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Send a version; the learner does not wait, and a store that is away gets the next one."""
        self._store.notify("publish", snapshot)
