"""The metrics hub as a Ray actor: one process that merges, and serves Prometheus and the page of
the run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldloom.core.metrics import MetricMap
from worldloom_dist.metrics.endpoint import serve_near
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.otlp import OtlpExport
from worldloom_dist.metrics.process import ProcessMeter
from worldloom_dist.page.app import PageApp
from worldloom_dist.runtime.log_forwarder import LogForwarder

__all__ = ["HubRole"]

MEASURE_EVERY_S = 2.0


class HubRole:
    """Holds the hub. A restarted hub starts its counters again, which Prometheus understands as a
    reset.

    Args:
        run_id, constants, build: As :class:`MetricsHub`.
        host, port: Of the endpoint; port 0 serves nothing. When the port was taken meanwhile, the
            next free one serves: metrics never end a run.
        secret: Token or password of the endpoint, empty for none.
        folder: Of the run, whose page is served.
        otlp: Variables of OpenTelemetry, where metrics are exported; None where they are not.
    """

    def __init__(
        self,
        run_id: str,
        constants: Mapping[str, str],
        build: Mapping[str, str],
        host: str,
        port: int,
        secret: str,
        folder: Path,
        otlp: Mapping[str, str] | None = None,
    ) -> None:
        self._log_forwarder = LogForwarder().listen()
        self._hub = MetricsHub(run_id, constants, build)
        self._gone = threading.Event()
        _, self._port = serve_near(self._hub, host, port, secret, PageApp(folder))
        self._otlp = None if otlp is None else OtlpExport(self._hub, run_id, otlp)

    def emit(
        self, role: str, index: int, values: MetricMap, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Merge one flush."""
        self._hub.emit(role, index, values, facts)

    def snapshot(self) -> dict[str, float]:
        """Every value now."""
        return self._hub.snapshot()

    def flush(self) -> None:
        """Export over OTLP what is known now, where the run does so."""
        if self._otlp is not None:
            self._otlp.flush()

    def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid(), "port": self._port, "said": self._log_forwarder.drain()}

    def run_forever(self) -> None:
        """Lasts as long as the process."""
        meter = ProcessMeter()
        while not self._gone.wait(MEASURE_EVERY_S):
            self._hub.emit("hub", 0, meter.drain())
