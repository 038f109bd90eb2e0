"""OpenTelemetry: what the hub has, sent over OTLP (http/protobuf) every few seconds from a thread.

    hub --collect--> this thread --POST /v1/metrics--> a collector

Names and labels are those of the Prometheus endpoint. Counters and histograms are cumulative from
the start of the hub, so that one which was started again is a reset, as OTLP expects. A collector
that is away costs what it would have been sent, and one warning: the next export has the totals.

Where it goes and how is told by OpenTelemetry's own variables: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``..._METRICS_ENDPOINT``), ``..._HEADERS``, ``..._TIMEOUT``, ``..._COMPRESSION``,
``..._CERTIFICATE``, ``OTEL_METRIC_EXPORT_INTERVAL``, ``OTEL_SERVICE_NAME`` and
``OTEL_RESOURCE_ATTRIBUTES``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.metrics.addresses import host_and_port, without_password

__all__ = ["OtlpExport", "check_otlp", "otlp_variables"]

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
DEFAULT_INTERVAL_MS = "10000"
LOCAL = "http://localhost:4318"
JOIN_S = 15.0
UNITS = {"seconds": "s", "bytes": "By"}
"""Last word of a name -> its unit as OpenTelemetry writes it."""


def otlp_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """OpenTelemetry's variables, for the process of the hub, which may be on another machine."""
    return {name: value for name, value in environment.items() if name.startswith("OTEL_")}


def check_otlp(environment: Mapping[str, str]) -> None:
    """Refuse variables with which nothing could be exported.

    Raises:
        ConfigurationError: Names the variable, and what it may be.
    """
    for name in ENDPOINTS:
        url = environment.get(name, "")
        if url and host_and_port(url) is None:
            raise ConfigurationError(
                f"{name} must be http://HOST:PORT or https://HOST:PORT, got "
                f"{without_password(url)!r}; a collector usually listens at {LOCAL}"
            )
    for name in PROTOCOLS:
        protocol = environment.get(name, "http/protobuf")
        if protocol != "http/protobuf":
            raise ConfigurationError(
                f"{name} must be http/protobuf, got {protocol!r}; unset it, and name the "
                "collector's port for it (4318)"
            )
    interval = environment.get(INTERVAL, DEFAULT_INTERVAL_MS)
    if not interval.isdecimal() or int(interval) < 100:
        raise ConfigurationError(
            f"{INTERVAL} must be milliseconds, an integer >= 100, got {interval!r}"
        )


class OtlpExport:
    """Exports a hub's metrics until it is closed; a last time then.

    Args:
        hub: What is exported.
        run_id: Of the run: ``service.instance.id``.
        variables: Of OpenTelemetry, put into this process's environment.
    """

    def __init__(
        self, hub: Collector, run_id: str, variables: Mapping[str, str] | None = None
    ) -> None:
        os.environ.update(variables or {})
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.resources import Resource

        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # we say it once
        self._hub = hub
        own = {"service.instance.id": run_id}
        named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
            own["service.name"] = "worldloom"
        self._resource = Resource.create(own)
        self._exporter: Any = None
        try:
            self._exporter = OTLPMetricExporter()
        except Exception as error:  # the edge: a variable that the exporter cannot read
            logger.warning(
                "OpenTelemetry: nothing is exported, because of a variable OTEL_... (%s: %s); the "
                "run goes on",
                type(error).__name__,
                error,
            )
        url = next((url for name in ENDPOINTS if (url := os.environ.get(name))), LOCAL)
        self._where = without_password(url)
        self._began_ns = time.time_ns()
        self._every_s = int(os.environ.get(INTERVAL, DEFAULT_INTERVAL_MS)) / 1000
        self._is_away = False
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Export what the hub has now; raises nothing."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        if self._exporter is None:
            return
        with self._turn:
            try:
                result = self._exporter.export(self._data())
                why = (
                    "" if result is MetricExportResult.SUCCESS else f"no answer from {self._where}"
                )
            except Exception as error:  # the edge: nothing of a collector reaches the run
                why = without_password(f"{type(error).__name__}: {error}")
        if why and not self._is_away:
            logger.warning(
                "OpenTelemetry: metrics could not be exported (%s); it is tried again every %g s, "
                "and the run goes on",
                why,
                self._every_s,
            )
        elif not why and self._is_away:
            logger.info("OpenTelemetry: metrics are exported again")
        self._is_away = bool(why)

    def close(self) -> None:
        """Export a last time, and end; waits for it a short time."""
        self._closing.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self.flush()
        self.flush()
        if self._exporter is not None:
            self._exporter.shutdown()

    def _data(self) -> Any:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now_ns = time.time_ns()
        metrics = [
            metric
            for family in self._hub.collect()
            if (metric := _metric(family, self._began_ns, now_ns)) is not None
        ]
        scope = ScopeMetrics(InstrumentationScope("worldloom_dist"), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def _metric(family: Family, began_ns: int, now_ns: int) -> Any:
    """A family of Prometheus as a metric of OTLP; None for one without samples."""
    from opentelemetry.sdk.metrics import export as otlp

    if not family.samples:
        return None
    whole = otlp.AggregationTemporality.CUMULATIVE
    data: Any
    if family.type == "histogram":
        data = otlp.Histogram(list(_histograms(family, began_ns, now_ns)), whole)
        name = family.name
    else:
        points = [
            otlp.NumberDataPoint(
                attributes=dict(sample.labels),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                value=sample.value,
            )
            for sample in family.samples
        ]
        name = family.samples[0].name
        data = otlp.Sum(points, whole, True) if family.type == "counter" else otlp.Gauge(points)
    unit = UNITS.get(name.removesuffix("_total").rpartition("_")[2], "1")
    return otlp.Metric(name, family.documentation, unit, data)


def _histograms(family: Family, began_ns: int, now_ns: int) -> Iterable[Any]:
    """One point per set of labels; Prometheus counts up from bucket to bucket, OTLP each alone."""
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in family.samples:
        labels = {key: value for key, value in sample.labels.items() if key != "le"}
        point = found.setdefault(tuple(sorted(labels.items())), {"bounds": [], "sums": []})
        if sample.name.endswith("_bucket"):
            point["bounds"].append(float(sample.labels["le"]))
            point["sums"].append(int(sample.value))
        elif sample.name.endswith("_sum"):
            point["sum"] = sample.value
    for key, point in found.items():
        counts = [
            own - before for own, before in zip(point["sums"], [0, *point["sums"]], strict=False)
        ]
        yield HistogramDataPoint(
            attributes=dict(key),
            start_time_unix_nano=began_ns,
            time_unix_nano=now_ns,
            count=point["sums"][-1],
            sum=point.get("sum", 0.0),
            bucket_counts=counts,
            explicit_bounds=point["bounds"][:-1],
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
        )
