"""The newest weights, kept by a role that outlives the learner. In one process it serves both doors; on Ray an actor wraps it."""

from __future__ import annotations

import threading

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot

__all__ = ["WeightStore"]


class WeightStore:
    """Holds one version; a version never falls. Implements ``ports.WeightSource`` and ``ports.WeightSink``."""

    def __init__(self) -> None:
        self._newest: WeightsSnapshot | None = None
        self._lock = threading.Lock()

    def version(self) -> PolicyVersion:
        """The newest version, ``NO_POLICY`` before the first."""
        newest = self._newest
        return newest.version if newest is not None else NO_POLICY

    def fetch(self) -> WeightsSnapshot:
        """The newest weights.

        Raises:
            StateError: Before the first publish.
        """
        newest = self._newest
        if newest is None:
            raise StateError("no weights have been published yet")
        return newest

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Make a version the newest one.

        Raises:
            StateError: If it is not above the newest one.
        """
        with self._lock:
            if self._newest is not None and snapshot.version <= self._newest.version:
                raise StateError(f"weights {snapshot.version} cannot follow {self._newest.version}: versions only rise")
            self._newest = snapshot
