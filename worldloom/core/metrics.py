"""Metric values that merge: born where something happens, summed up on the way to the hub, read
once.

``merge`` is associative, so values may be combined in any grouping (worker, node, hub). Durations
are seconds, sizes bytes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

__all__ = [
    "Histogram",
    "HistogramBuilder",
    "Last",
    "Max",
    "Mean",
    "Metric",
    "MetricMap",
    "Sum",
    "merge_into",
]


@dataclass(frozen=True, slots=True)
class Mean:
    """An average that remembers how many values it stands for."""

    total: float
    count: float = 1.0

    def merge(self, other: Mean) -> Mean:
        """The average over both."""
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The average, NaN when nothing was counted."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """An increment: what happened since the last flush."""

    value: float

    def merge(self, other: Sum) -> Sum:
        """The total of both."""
        return Sum(self.value + other.value)


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen."""

    value: float

    def merge(self, other: Max) -> Max:
        """The larger of both."""
        return Max(max(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Last:
    """The value of the latest observation (``stamp`` orders them: any clock that the metric's
    writers share).
    """

    value: float
    stamp: float = 0.0

    def merge(self, other: Last) -> Last:
        """The later of both; ``other`` wins a tie."""
        return other if other.stamp >= self.stamp else self


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket; bucket i holds values <= ``bounds[i]``, the last one everything above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...], *values: float) -> Histogram:
        """A histogram of the given values."""
        counts = [0] * (len(bounds) + 1)
        for value in values:
            counts[bisect.bisect_left(bounds, value)] += 1
        return cls(bounds, tuple(counts), float(sum(values)))

    def merge(self, other: Histogram) -> Histogram:
        """The counts of both; the bounds must be equal."""
        if self.bounds != other.bounds:
            raise ValueError(
                f"histograms with bounds {self.bounds} and {other.bounds} do not merge"
            )
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, self.total + other.total)

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def value(self) -> float:
        """The mean of the values, NaN when there are none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """Upper bound of the bucket that holds the ``q`` quantile (the last finite bound for the
        open bucket).
        """
        rank = q * self.count
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return self.bounds[min(index, len(self.bounds) - 1)]
        return math.nan


class HistogramBuilder:
    """Collects values for a :class:`Histogram` in place, for loops that run thousands of times per
    second; used by one thread.

    Args:
        bounds: As of the histogram.

    Example:
        >>> tally = HistogramBuilder((1.0, 5.0))
        >>> tally.add(0.5)
        >>> tally.take().counts, tally.take().count
        ((1, 0, 0), 0)
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def take(self) -> Histogram:
        """What was counted since the last call."""
        taken = Histogram(self._bounds, tuple(self._counts), self._total)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0
        return taken


Metric = Mean | Sum | Max | Last | Histogram
MetricMap = dict[str, Metric]


def merge_into(target: MutableMapping[str, Metric], update: Mapping[str, Metric]) -> None:
    """Merge ``update`` into ``target`` key by key; a key must keep its type."""
    for key, metric in update.items():
        old = target.get(key)
        if old is not None and type(old) is not type(metric):
            raise TypeError(
                f"metric {key!r} was a {type(old).__name__} and is now a {type(metric).__name__}"
            )
        target[key] = metric if old is None else old.merge(metric)  # type: ignore[arg-type]
