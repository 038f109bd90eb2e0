"""Counters of the whole run: they go on where the run's last record left them, and over a hub that
counts from 0 again. So do gauges that never fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from worldloom_dist.metrics.names import METRICS, MetricInfo, split_key

__all__ = ["RunTotals"]

ALWAYS_GROWS = "process_cpu_seconds_total"
"""Every role adds to it every few seconds: where it is less than before, the hub began again, and a
counter that is as high as before was counted up from 0.
"""


class RunTotals:
    """Adds up what a hub counts; no counter ever falls, and no gauge that ``is_rising``.

    Args:
        earlier: The last record of the run before a resume, ``{}`` for a new run; what is neither
            is passed over.

    Example:
        >>> totals = RunTotals({"weights_published_total": 10.0})
        >>> for published in (2.0, 1.0):  # the second hub began again
        ...     hub = {"weights_published_total": published}
        ...     totals.update(hub)
        >>> totals.values["weights_published_total"], totals.grown("weights_published_total")
        (13.0, 3.0)
    """

    def __init__(self, earlier: Mapping[str, object]) -> None:
        self.values = {**dict(_counters(earlier)), **dict(_rising(earlier))}
        self._began = dict(self.values)
        self._seen = dict[str, float]()

    def update(self, snapshot: Mapping[str, float]) -> None:
        """Take the hub's values."""
        if snapshot.get(ALWAYS_GROWS, 0.0) < self._seen.get(ALWAYS_GROWS, 0.0):
            self._seen.clear()
        for key, value in _counters(snapshot):
            before = self._seen.get(key, 0.0)
            self.values[key] = self.values.get(key, 0.0) + (
                value - before if value >= before else value
            )
            self._seen[key] = value
        for key, value in _rising(snapshot):
            self.values[key] = max(value, self.values.get(key, value))

    def grown(self, name: str, **labels: str) -> float:
        """By how much a counter has grown since this object was made, summed over the labels that
        are not given.
        """
        return sum(
            value - self._began.get(key, 0.0)
            for key, value in self.values.items()
            if (found := split_key(key))[0] == name and labels.items() <= found[1].items()
        )


def _counters(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    return _numbers(values, lambda info: info.kind == "counter")


def _rising(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    return _numbers(values, lambda info: info.is_rising)


def _numbers(
    values: Mapping[str, object], is_wanted: Callable[[MetricInfo], bool]
) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        info = METRICS.get(split_key(key)[0])
        if (
            info is not None
            and is_wanted(info)
            and isinstance(value, int | float)
            and math.isfinite(value)
        ):
            yield key, float(value)
