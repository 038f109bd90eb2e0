"""The curves of a run, from the records of its ``metrics.jsonl``: the run's page and ``plot`` read
them here.

A record that lies behind the one before it belongs to a run that went back to a checkpoint: what
was recorded beyond that point is left out, because it was done again. A run on Ray keeps its env
steps where a learner went back: there only the curves over updates leave those points out.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloom_dist.metrics.names import loss_of

__all__ = [
    "AXES",
    "EVALUATION",
    "TRAINING",
    "TRAIN_RETURN",
    "Axis",
    "Curve",
    "History",
    "Row",
    "finite_number",
]

TRAINING = "training return"
EVALUATION = "evaluation return"
RATES = {"env_steps_per_s": "env steps/s", "updates_per_s": "updates/s"}
TRAIN_RETURN = "episode_return_mean{split=train}"


@dataclass(frozen=True, slots=True)
class Axis:
    """What curves can be over.

    Attributes:
        label: As people read it.
        field: Of a :class:`Row`.
    """

    label: str
    field: str


AXES: Mapping[str, Axis] = {
    "env_steps": Axis("env steps", "env_steps"),
    "updates": Axis("updates", "updates"),
    "time": Axis("hours", "hours"),
}


@dataclass(slots=True)
class Row:
    """One record, or several neighbours that became one.

    Attributes:
        env_steps, updates, hours: Where in the run; of several, the last.
        values, low, high: Mean, lowest and highest value by curve.
        count: Records in it.
    """

    env_steps: float
    updates: float
    hours: float
    values: dict[str, float]
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over one axis; ``low`` and ``high`` are its band, None without one. All ``[n]``
    float64.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


class History:
    """What a run has recorded, taken in record by record.

    Args:
        is_offline: True where there is no env, so that updates say how far the run is.
        most: Rows that are kept at least; from twice as many on neighbours become one, so that
            memory is bounded. None keeps every record as it is.

    Attributes:
        rows: Training records, in order.
        evaluations: Evaluations, in order.
        last: The newest training record as it is.
    """

    def __init__(self, *, is_offline: bool = False, most: int | None = None) -> None:
        self._is_offline = is_offline
        self._most = most
        self._began: float | None = None
        self.rows: list[Row] = []
        self.evaluations: list[Mapping[str, Any]] = []
        self.last: Mapping[str, Any] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; one that is none of a run is passed over."""
        if record.get("kind") == "eval":
            if finite_number(record.get("env_steps")) is not None:
                self._forget_evaluations(record["env_steps"])
                self.evaluations.append(record)
            return
        row = self._row(record)
        if row is None:
            return
        self.last = record
        self._go_back_to(row)
        self.rows.append(row)
        if self._most is not None and len(self.rows) >= 2 * self._most:
            self.rows = [_merged(*self.rows[i : i + 2]) for i in range(0, len(self.rows), 2)]

    def add_all(self, records: Iterable[Mapping[str, Any]]) -> History:
        """Take several; returns itself."""
        for record in records:
            self.add(record)
        return self

    @property
    def names(self) -> list[str]:
        """Of the curves, in the order in which they first came."""
        found = dict.fromkeys(name for row in self.rows for name in row.values)
        return [*found, *([EVALUATION] if self.evaluations else [])]

    def curve(self, name: str, axis: str = "env_steps") -> Curve:
        """One curve; of the evaluation with a band of one standard deviation over its episodes.

        Args:
            name: One of :attr:`names`.
            axis: A key of :data:`AXES`.
        """
        if name == EVALUATION:
            return self._evaluation(axis)
        points = {
            place: row.values[name]
            for row, place in zip(self.rows, self.places(axis), strict=True)
            if place is not None and name in row.values
        }
        steps = sorted(points)
        return Curve(np.array(steps, float), np.array([points[step] for step in steps], float))

    def places(self, axis: str) -> list[float | None]:
        """Where on an axis the rows are; None for what the run did again later."""
        known = [getattr(row, AXES[axis].field) for row in self.rows]
        return [
            place if place <= limit else None
            for place, limit in zip(known, _lowest_from(known), strict=True)
        ]

    def place(self, env_steps: float, axis: str) -> float | None:
        """Where on an axis the run had made this many env steps; linear between records. None where
        it did that again later.
        """
        if axis == "env_steps" or not self.rows:
            return env_steps
        steps = [row.env_steps for row in self.rows]
        known = [getattr(row, AXES[axis].field) for row in self.rows]
        place = float(np.interp(env_steps, steps, known))
        later = bisect.bisect_left(steps, env_steps)
        is_last = later == len(steps)
        return place if is_last or place <= _lowest_from(known)[later] else None

    def _evaluation(self, axis: str) -> Curve:
        points = {
            place: (mean, finite_number(record.get("return_std")))
            for record in self.evaluations
            if (mean := finite_number(record.get("return_mean"))) is not None
            and (place := self.place(float(record["env_steps"]), axis)) is not None
        }
        steps = sorted(points)
        means = np.array([points[step][0] for step in steps], float)
        spread = np.array([points[step][1] or 0.0 for step in steps], float)
        return Curve(np.array(steps, float), means, means - spread, means + spread)

    def _row(self, record: Mapping[str, Any]) -> Row | None:
        env_steps = finite_number(record.get("env_steps"))
        if env_steps is None:
            return None
        stamp = finite_number(record.get("time"))
        seconds = finite_number(record.get("wall_time_s"))
        if seconds is None and stamp is not None:  # records of earlier versions: with the pauses
            self._began = stamp if self._began is None else self._began
            seconds = stamp - self._began
        return Row(
            env_steps,
            finite_number(record.get("train_steps")) or 0.0,
            (seconds or 0.0) / 3600,
            dict(_curves_of(record)),
        )

    def _go_back_to(self, row: Row) -> None:
        """Leave out what the run did beyond ``row`` and does again."""
        place = "updates" if self._is_offline else "env_steps"
        now = getattr(row, place)
        if not self.rows or getattr(self.rows[-1], place) <= now:
            return
        while self.rows and getattr(self.rows[-1], place) > now:
            self.rows.pop()
        if not self._is_offline:
            self._forget_evaluations(now + 1)

    def _forget_evaluations(self, env_steps: float) -> None:
        while self.evaluations and self.evaluations[-1]["env_steps"] >= env_steps:
            self.evaluations.pop()


def _curves_of(record: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Name and value of what is drawn; null stands for what was not finite."""
    for key, value in record.items():
        number = finite_number(value)
        if number is None:
            continue
        if key == TRAIN_RETURN:
            yield TRAINING, number
        elif key in RATES:
            yield RATES[key], number
        elif loss_of(key) is not None:
            yield key, number


def _lowest_from(numbers: list[float]) -> list[float]:
    """For each number the lowest of it and those behind it."""
    found: list[float] = np.minimum.accumulate(np.array(numbers[::-1], float))[::-1].tolist()
    return found


def finite_number(value: Any) -> float | None:
    """The value of a record as a number; None for any other, or one that is not finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _merged(first: Row, second: Row | None = None) -> Row:
    if second is None:
        return first
    count = first.count + second.count
    values: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name in first.values | second.values:
        parts = [row for row in (first, second) if name in row.values]
        weight = sum(row.count for row in parts)
        values[name] = sum(row.values[name] * row.count for row in parts) / weight
        low[name] = min(row.low.get(name, row.values[name]) for row in parts)
        high[name] = max(row.high.get(name, row.values[name]) for row in parts)
    return Row(second.env_steps, second.updates, second.hours, values, low, high, count)
