"""The hub: merges what the roles send, and answers two questions: what is it now (console, files),
and what is it to Prometheus.

Roles send increments and observations every few seconds; the hub keeps totals. Counters and
histograms of all instances of a role are added up; gauges of a role's instances become one number,
as the table of metrics says (``MetricInfo.across``), and so do those of several roles where a run
has one number for them all. So the number of series depends on the roles and not on how many
workers there are. The window of recent episodes is the run's, whichever roles play them. Nothing
here blocks training: a role that cannot reach the hub drops its flush and goes on.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from worldloom.core.metrics import Histogram, Last, Metric, MetricMap, Sum
from worldloom_dist.metrics.names import METRICS, ZEROS, Across, key_of, split_key

__all__ = ["MetricsHub"]

logger = logging.getLogger(__name__)

RECENT_EPISODES = 20
RECENT_OF_TASK = 20
"""Episodes of one of several tasks that its mean return is over."""
GONE_AFTER_S = 900.0
"""An instance that is silent for this long, while others of its role are heard, is not coming back:
longer than any deadline of the supervisor.
"""
SUMMED_FOR_S = 60.0
"""A gauge of several instances leaves out those that were not heard of for so long: they died, or
were given up.
"""
ALL = -1
"""In place of an instance's index: what all instances of a role have together."""
RUN = "hub"
"""The role of what is one number for the run: the hub's own."""


class MetricsHub(Collector):
    """Totals by (role, key). Thread-safe.

    Args:
        run_id: Label of every series.
        constants: Facts for the ``run_info`` series.
        build: Versions for the ``build_info`` series.
        clock: Monotonic seconds.

    Example:
        >>> hub = MetricsHub("demo", {"env": "toy:point"})
        >>> hub.emit("learner", 0, {"learner_updates_total": Sum(2)})
        >>> hub.emit("learner", 0, {"learner_updates_total": Sum(3)})
        >>> hub.snapshot()["learner_updates_total"]
        5.0
    """

    def __init__(
        self,
        run_id: str,
        constants: Mapping[str, str] | None = None,
        build: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id = run_id
        self._clock = clock
        self._arrived = 0
        self._infos = {"run_info": dict(constants or {}), "build_info": dict(build or {})}
        self._values: dict[tuple[str, str], dict[int, Metric]] = {
            (role, key): {ALL: Sum(0.0)} for role, keys in ZEROS.items() for key in keys
        }
        self._heard: dict[tuple[str, int], float] = {}
        self._highest: dict[tuple[str, str], float] = {}
        self._episodes: deque[Mapping[str, Any]] = deque(maxlen=RECENT_EPISODES)
        self._of_task: dict[str, deque[float]] = {}
        self._unknown: set[str] = set()
        self._lock = threading.Lock()

    def emit(
        self, role: str, index: int, values: MetricMap, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Merge one flush of a role. ``facts["episodes"]`` is a list of ``{return, length,
        reason}``, in a run of several tasks with ``task``.
        """
        episodes = (facts or {}).get("episodes", ())
        with self._lock:
            self._heard[role, index] = self._clock()
            for key, value in values.items():
                self._merge(role, index, key, value)
            for episode in episodes:
                self._episodes.append(episode)
                self._merge(role, ALL, key_of("episodes_total", reason=episode["reason"]), Sum(1))
                if episode.get("task"):
                    self._note_task(role, episode["task"], episode["return"])
            if episodes:
                for name, number in _of_episodes(self._episodes).items():
                    self._values[RUN, f"{name}{{split=train}}"] = {ALL: Last(number)}

    def _note_task(self, role: str, task: str, episode_return: float) -> None:
        """Count an episode of one of several tasks; called with the lock held."""
        returns = self._of_task.setdefault(task, deque(maxlen=RECENT_OF_TASK))
        returns.append(episode_return)
        self._merge(role, ALL, key_of("task_episodes_total", task=task), Sum(1))
        mean = Last(sum(returns) / len(returns))
        self._values[RUN, key_of("task_return_mean", split="train", task=task)] = {ALL: mean}

    def snapshot(self) -> dict[str, float]:
        """Every value now, by key; a histogram gives its mean and, as ``KEY:p99``, its 99th
        percentile.
        """
        with self._lock:
            roles: dict[str, list[str]] = {}
            for role, key in self._values:
                roles.setdefault(key, []).append(role)
            values = {
                key: self._held("", key, self._value(key, *names)) for key, names in roles.items()
            }
        flat: dict[str, float] = {}
        for key, value in values.items():
            if not isinstance(value, Histogram):
                flat[key] = float(value.value)
            elif value.count:
                flat |= {key: value.value, f"{key}:p99": value.quantile(0.99)}
        return flat

    def collect(self) -> Iterable[Family]:
        """What Prometheus scrapes: one family per name, series labelled with run_id and role."""
        with self._lock:
            values = [
                ((role, key), self._held(role, key, self._value(key, role)))
                for role, key in self._values
            ]
            now = self._clock()
            heard = {
                role: time.time() - (now - self._oldest_heartbeat(role)) for role, _ in self._heard
            }
        by_name: dict[str, list[tuple[dict[str, str], Metric]]] = {
            name: [(facts, Last(1.0))] for name, facts in self._infos.items()
        }
        by_name["heartbeat_timestamp_seconds"] = [
            ({"role": role}, Last(stamp)) for role, stamp in heard.items()
        ]
        for (role, key), value in values:
            name, labels = split_key(key)
            by_name.setdefault(name, []).append(({"role": role, **labels}, value))
        for name, series in by_name.items():
            yield from self._family(name, series)

    def _oldest_heartbeat(self, role: str) -> float:
        """Of the instances of a role: one that has been silent for long while others were heard is
        gone (a worker that was given up, or that an elastic run let go).
        """
        stamps = [stamp for (name, _), stamp in self._heard.items() if name == role]
        newest = max(stamps)
        return min(stamp for stamp in stamps if newest - stamp < GONE_AFTER_S)

    def _merge(self, role: str, index: int, key: str, value: Metric) -> None:
        name = _name_of(key)
        if name not in METRICS:
            if name not in self._unknown:
                self._unknown.add(name)
                logger.warning("metric %r is not in the table of metrics; it is dropped", name)
            return
        instances = self._values.setdefault((role, key), {})
        if METRICS[name].kind == "gauge":
            self._arrived += 1  # the clocks of several machines say nothing of an order
            instances[index] = Last(float(value.value), self._arrived)
        else:
            old = instances.get(ALL)
            instances[ALL] = value if old is None else old.merge(value)  # type: ignore[arg-type]

    def _value(self, key: str, *roles: str) -> Metric:
        """What the instances of some roles have together; called with the lock held."""
        info = METRICS[split_key(key)[0]]
        parts = [(role, part) for role in roles for part in self._values[role, key].items()]
        values = [value for _, (_, value) in parts]
        if info.kind != "gauge":
            return functools.reduce(lambda all_, one: all_.merge(one), values)  # type: ignore[arg-type]
        now = self._clock()
        living = [
            value
            for role, (index, value) in parts
            if now - self._heard.get((role, index), -SUMMED_FOR_S) < SUMMED_FOR_S
        ]
        return _combine(info.across, living, values)

    def _held(self, owner: str, key: str, value: Metric) -> Metric:
        """The highest so far of what never falls; called with the lock held."""
        if not METRICS[split_key(key)[0]].is_rising or isinstance(value, Histogram):
            return value
        highest = max(float(value.value), self._highest.get((owner, key), float(value.value)))
        self._highest[owner, key] = highest
        return Last(highest, _stamp(value))

    def _family(self, name: str, series: list[tuple[dict[str, str], Metric]]) -> Iterator[Family]:
        info = METRICS[name]
        labels = sorted({label for own, _ in series for label in own} | {"run_id"})
        full = "worldloom_" + name
        family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
        if info.kind == "counter":
            family = CounterMetricFamily(full.removesuffix("_total"), info.help, labels=labels)
        elif info.kind == "gauge":
            family = GaugeMetricFamily(full, info.help, labels=labels)
        else:
            family = HistogramMetricFamily(full, info.help, labels=labels)
        for own, value in series:
            texts = [{**own, "run_id": self.run_id}.get(label, "") for label in labels]
            if isinstance(value, Histogram):
                running = 0
                buckets = []
                for bound, count in zip(
                    (*map(str, value.bounds), "+Inf"), value.counts, strict=True
                ):
                    running += count
                    buckets.append((bound, running))
                family.add_metric(texts, buckets, value.total)  # type: ignore[arg-type]
            else:
                family.add_metric(texts, float(value.value))  # type: ignore[call-arg, arg-type]
        yield family


def _name_of(key: str) -> str:
    """Of a key; one that cannot be read is its own name, which is in no table."""
    try:
        return split_key(key)[0]
    except ValueError:
        return key


def _combine(across: Across, living: list[Metric], known: list[Metric]) -> Metric:
    """One value of a gauge for several instances.

    Args:
        across: How.
        living: Of those that are there.
        known: Of these and those that are gone, which have a say where no other has, except in a
            sum.
    """
    stamp = max(_stamp(value) for value in known)
    if across == "sum":
        return Last(sum(float(value.value) for value in living), stamp)
    if across == "last":
        return max(known, key=_stamp)
    numbers = [float(value.value) for value in living or known]
    return Last(min(numbers) if across == "min" else sum(numbers) / len(numbers), stamp)


def _stamp(value: Metric) -> float:
    return getattr(value, "stamp", 0.0)


def _of_episodes(episodes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    returns, lengths = zip(*((e["return"], e["length"]) for e in episodes), strict=True)
    return {
        "episode_return_mean": sum(returns) / len(returns),
        "episode_return_min": min(returns),
        "episode_return_max": max(returns),
        "episode_length_steps_mean": sum(lengths) / len(lengths),
    }
