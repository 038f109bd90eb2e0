"""The weight store as a Ray actor, and the door to it."""

from __future__ import annotations

import os
from typing import Any

import ray

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.runtime.remote import Remote, RoleGoneError
from worldloom_dist.runtime.reporting import Reporter

__all__ = ["RemoteWeights", "WeightStoreRole"]


class WeightStoreRole:
    """Holds the newest weights in the object store and outlives the learner. Keeps the last two versions alive for slow pullers."""

    def __init__(self) -> None:
        self._version = NO_POLICY
        self._references: list[Any] = []

    async def publish(self, snapshot: WeightsSnapshot) -> bool:
        """Take a version; False when it is not above the newest one (a dead learner's last words)."""
        if snapshot.version <= self._version:
            return False
        self._references = [*self._references[-1:], ray.put(snapshot)]
        self._version = snapshot.version
        return True

    async def version(self) -> PolicyVersion:
        """The newest version."""
        return self._version

    async def fetch(self) -> list[Any]:
        """A list with the newest reference (so that Ray does not copy it on the way), or an empty one."""
        return self._references[-1:]

    async def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid()}

    async def lifeline(self) -> None:
        """Lasts as long as the process."""
        await Reporter("weights").emit_for_ever()


class RemoteWeights:
    """``ports.WeightSource`` and ``ports.WeightSink`` over the weight store."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._store = Remote("weights-0")
        self._timeout_s = timeout_s

    def version(self) -> PolicyVersion:
        """The newest version."""
        version: PolicyVersion = self._store.call("version", timeout_s=self._timeout_s, patience_s=0.0)
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
            version: PolicyVersion = await self._store.acall("version", timeout_s=self._timeout_s, patience_s=0.0)
        except RoleGoneError:
            return otherwise
        return version

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Send a version; the learner does not wait, and a store that is away gets the next one."""
        self._store.tell("publish", snapshot)
