"""The weight store as a Ray actor, and the way to it."""

from __future__ import annotations

import os
from typing import Any

import ray

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.interfaces import WeightStore, weight_store_client
from worldloom_dist.learner.weight_store import LastVersions
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.runtime.deadlines import DEADLINES
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

    def __init__(self, timeout_s: float = DEADLINES.weights_s) -> None:
        self._store = weight_store_client().within(timeout_s=timeout_s, patience_s=0.0)
        self._timeout_s = timeout_s

    def version(self) -> PolicyVersion:
        """The newest version."""
        return self._store.call(WeightStore.version)

    def fetch(self) -> WeightsSnapshot:
        """The newest weights, one copy per node, read-only.

        Raises:
            StateError: If nothing has been published.
        """
        references = self._store.call(WeightStore.fetch)
        if not references:
            raise StateError("no weights have been published yet")
        snapshot: WeightsSnapshot = ray.get(references[0], timeout=self._timeout_s)
        return snapshot

    async def aversion(self, otherwise: PolicyVersion) -> PolicyVersion:
        """:meth:`version` for an event loop; ``otherwise`` when the store is away."""
        try:
            return await self._store.acall(WeightStore.version)
        except RoleGoneError:
            return otherwise

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Send a version; the learner does not wait, and a store that is away gets the next one."""
        self._store.notify(WeightStore.publish, snapshot)
