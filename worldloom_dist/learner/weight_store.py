"""The newest weights, kept by a role that outlives the learner. In one process it serves both
protocols; on Ray an actor wraps it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot

__all__ = ["LastVersions", "WeightStore"]

T = TypeVar("T")
KEPT = 2
"""Versions kept: the newest, and the one before it for those who are still fetching it."""


class LastVersions(Generic[T]):
    """The last two versions of something. The one home of the rule that a version never falls."""

    def __init__(self) -> None:
        self._kept: deque[tuple[PolicyVersion, T]] = deque(maxlen=KEPT)

    @property
    def version(self) -> PolicyVersion:
        """The newest version, ``NO_POLICY`` before the first."""
        return self._kept[-1][0] if self._kept else NO_POLICY

    @property
    def newest(self) -> T:
        """What came with the newest version.

        Raises:
            StateError: Before the first.
        """
        if not self._kept:
            raise StateError("no weights have been published yet")
        return self._kept[-1][1]

    def accepts(self, version: PolicyVersion) -> bool:
        """True when the version is above the newest one."""
        return not self._kept or version > self.version

    def put(self, version: PolicyVersion, thing: T) -> None:
        """Take a version and let go of the last but two.

        Raises:
            StateError: If it is not above the newest one.
        """
        if not self.accepts(version):
            raise StateError(f"weights {version} cannot follow {self.version}: versions only rise")
        self._kept.append((version, thing))


class WeightStore:
    """Holds snapshots in this process. Implements ``ports.WeightSource`` and
    ``ports.WeightSink``.
    """

    def __init__(self) -> None:
        self._versions: LastVersions[WeightsSnapshot] = LastVersions()
        self._lock = threading.Lock()

    def version(self) -> PolicyVersion:
        """The newest version, ``NO_POLICY`` before the first."""
        return self._versions.version

    def fetch(self) -> WeightsSnapshot:
        """The newest weights.

        Raises:
            StateError: Before the first publish.
        """
        return self._versions.newest

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Make a version the newest one.

        Raises:
            StateError: If it is not above the newest one.
        """
        with self._lock:
            self._versions.put(snapshot.version, snapshot)
