"""The hub: merges what the roles send, and answers two questions: what is it now (console, files), and what is it to Prometheus.

Roles send increments and observations every few seconds; the hub keeps totals. Counters and histograms of all instances of a role
are added up; gauges of a role's instances are kept apart only where the key carries a label. Nothing here blocks training: a role
that cannot reach the hub drops its flush and goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from worldloom.core.metrics import Histogram, Last, Metric, MetricMap, Sum
from worldloom_dist.metric_names import METRICS, split_key

__all__ = ["MetricsHub", "serve"]

logger = logging.getLogger(__name__)

RECENT_EPISODES = 50


class MetricsHub(Collector):
    """Totals by (role, key). Thread-safe.

    Args:
        run_id: Label of every series.
        constants: Facts for the ``run_info`` series.

    Example:
        >>> hub = MetricsHub("demo", {"env": "toy:point"})
        >>> hub.emit("learner", 0, {"learner_updates_total": Sum(2)})
        >>> hub.emit("learner", 0, {"learner_updates_total": Sum(3)})
        >>> hub.snapshot()["learner_updates_total"]
        5.0
    """

    def __init__(self, run_id: str, constants: Mapping[str, str] | None = None) -> None:
        self.run_id = run_id
        self._constants = dict(constants or {})
        self._values: dict[tuple[str, str], Metric] = {}
        self._heard: dict[tuple[str, int], float] = {}
        self._episodes: deque[Mapping[str, Any]] = deque(maxlen=RECENT_EPISODES)
        self._unknown: set[str] = set()
        self._lock = threading.Lock()

    def emit(self, role: str, index: int, values: MetricMap, facts: Mapping[str, Any] | None = None) -> None:
        """Merge one flush of a role. ``facts["episodes"]`` is a list of ``{return, length, reason}``."""
        episodes = (facts or {}).get("episodes", ())
        with self._lock:
            self._heard[role, index] = time.time()
            for key, value in values.items():
                self._merge(role, key, value)
            for episode in episodes:
                self._episodes.append(episode)
                self._merge(role, f"episodes_total{{reason={episode['reason']}}}", Sum(1))
            if episodes:
                count = len(self._episodes)
                mean_return = sum(e["return"] for e in self._episodes) / count
                mean_length = sum(e["length"] for e in self._episodes) / count
                self._values[role, "episode_return_mean{split=train}"] = Last(mean_return)
                self._values[role, "episode_length_steps_mean{split=train}"] = Last(mean_length)

    def snapshot(self) -> dict[str, float]:
        """Every value now, by key; a histogram gives its mean and, as ``KEY:p99``, its 99th percentile."""
        with self._lock:
            merged: dict[str, Metric] = {}
            for (_, key), value in self._values.items():
                known = merged.get(key)
                merged[key] = value if known is None else known.merge(value)  # type: ignore[arg-type]
        flat: dict[str, float] = {}
        for key, value in merged.items():
            flat[key] = float(value.value)
            if isinstance(value, Histogram):
                flat[f"{key}:p99"] = value.quantile(0.99)
        return flat

    def last_heard(self) -> dict[tuple[str, int], float]:
        """When each role instance was last heard of (unix time)."""
        with self._lock:
            return dict(self._heard)

    def forget(self, role: str, index: int) -> None:
        """Drop the heartbeat of a role instance that is gone for good."""
        with self._lock:
            self._heard.pop((role, index), None)

    def collect(self) -> Iterable[Family]:
        """What Prometheus scrapes: one family per name, series labelled with run_id and role."""
        with self._lock:
            values = list(self._values.items())
            heard: dict[str, float] = {}
            for (role, _), stamp in self._heard.items():
                heard[role] = min(heard.get(role, stamp), stamp)
        by_name: dict[str, list[tuple[dict[str, str], Metric]]] = {"run_info": [(self._constants, Last(1.0))]}
        by_name["heartbeat_timestamp_seconds"] = [({"role": role}, Last(stamp)) for role, stamp in heard.items()]
        for (role, key), value in values:
            name, labels = split_key(key)
            by_name.setdefault(name, []).append(({"role": role, **labels}, value))
        for name, series in by_name.items():
            yield from self._family(name, series)

    def _merge(self, role: str, key: str, value: Metric) -> None:
        name, _ = split_key(key)
        if name not in METRICS:
            if name not in self._unknown:
                self._unknown.add(name)
                logger.warning("metric %r is not in the table of metrics; it is dropped", name)
            return
        old = self._values.get((role, key))
        is_gauge = METRICS[name].kind == "gauge"
        self._values[role, key] = value if old is None or is_gauge else old.merge(value)  # type: ignore[arg-type]

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
                running, buckets = 0, []
                for bound, count in zip((*map(str, value.bounds), "+Inf"), value.counts, strict=True):
                    running += count
                    buckets.append((bound, running))
                family.add_metric(texts, buckets, value.total)  # type: ignore[arg-type]
            else:
                family.add_metric(texts, float(value.value))  # type: ignore[call-arg, arg-type]
        yield family


def serve(hub: MetricsHub, host: str, port: int) -> tuple[Any, int]:
    """Serve ``/metrics`` from a thread.

    Returns:
        The server (call ``shutdown()`` and ``server_close()``) and the port it got.

    Raises:
        OSError: If the port is taken.
    """
    from prometheus_client.exposition import start_http_server

    registry = CollectorRegistry()
    registry.register(hub)
    server, _ = start_http_server(port, addr=host, registry=registry)
    return server, int(server.server_port)
