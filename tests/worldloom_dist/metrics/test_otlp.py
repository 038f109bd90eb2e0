"""A collector gets what the hub has, under the names of the Prometheus endpoint."""

import contextlib
import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.waiting import wait_until
from worldloom.core.metrics import Histogram, Last, Sum
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.otlp import OtlpExport, otlp_variables
from worldloom_dist.run.config import RunConfig

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs worldloom-dist[otel]")


class Collector(ThreadingHTTPServer):
    """Reads OTLP as a collector does, and keeps the requests."""

    def __init__(self):
        self.requests = []
        self.paths = []
        self.headers = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.status == 200:
            self.server.requests.append(service.ExportMetricsServiceRequest.FromString(body))
            self.server.paths.append(self.path)
            self.server.headers.append(dict(self.headers))
        answer = service.ExportMetricsServiceResponse().SerializeToString()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def collector(monkeypatch):
    for name in otlp_variables():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
    with serving(Collector()) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server


def attributes(pairs):
    return {pair.key: pair.value.string_value for pair in pairs}


def metrics_of(request):
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}, attributes(
        resource.resource.attributes
    )


def test_a_collector_gets_counters_gauges_and_histograms_as_the_hub_has_them(
    collector, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=robots")
    hub = MetricsHub("demo-1", {"env": "toy:point"}, {"version": "1"})
    hub.emit("learner", 0, {"learner_updates_total": Sum(3), "loss{name=total}": Last(0.5)})
    lags = Histogram.of((0.0, 1.0, 5.0), 0.5, 0.7, 3.0, 99.0)
    hub.emit("learner", 0, {"policy_lag_updates": lags})
    export = OtlpExport(hub, "demo-1")
    export.flush()
    hub.emit("learner", 0, {"learner_updates_total": Sum(2)})
    export.close()
    assert collector.paths == ["/v1/metrics", "/v1/metrics"]
    assert collector.headers[0]["authorization"] == "Bearer abc"
    found, resource = metrics_of(collector.requests[0])
    assert resource["service.name"] == "worldloom"
    assert resource["service.instance.id"] == "demo-1"
    assert resource["team"] == "robots"

    total = found["worldloom_learner_updates_total"]
    assert total.sum.is_monotonic
    assert total.sum.aggregation_temporality == 2, "cumulative"
    (point,) = total.sum.data_points
    assert point.as_double == 3.0
    assert attributes(point.attributes) == {"role": "learner", "run_id": "demo-1"}
    later, _ = metrics_of(collector.requests[1])
    (after,) = later["worldloom_learner_updates_total"].sum.data_points
    assert after.as_double == 5.0
    assert after.start_time_unix_nano == point.start_time_unix_nano < after.time_unix_nano

    (loss,) = found["worldloom_loss"].gauge.data_points
    assert loss.as_double == 0.5
    assert attributes(loss.attributes)["name"] == "total"

    histogram = found["worldloom_policy_lag_updates"].histogram
    assert histogram.aggregation_temporality == 2
    (bucket,) = histogram.data_points
    assert list(bucket.explicit_bounds) == [0.0, 1.0, 5.0]
    assert list(bucket.bucket_counts) == [0, 2, 1, 1]
    assert bucket.count == 4
    assert bucket.sum == pytest.approx(103.2)
    assert not bucket.HasField("min")
    assert found["worldloom_heartbeat_timestamp_seconds"].unit == "s"


def test_every_family_of_the_endpoint_is_exported(collector):
    hub = MetricsHub("demo-1", {"env": "toy:point"}, {"version": "1"})
    hub.emit("learner", 0, {"learner_updates_total": Sum(3)})
    OtlpExport(hub, "demo-1").close()
    found, _ = metrics_of(collector.requests[-1])
    assert set(found) == {
        family.name + ("_total" if family.type == "counter" else "")
        for family in hub.collect()
        if family.samples
    }


def test_it_exports_again_and_again_by_itself(collector, monkeypatch):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    export = OtlpExport(MetricsHub("demo-1"), "demo-1")
    with contextlib.closing(export):
        wait_until(lambda: len(collector.requests) >= 2)


def test_a_collector_that_refuses_is_told_of_once_and_found_again(collector, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.replace("//", "//me:secret@"))
    collector.status = 400
    export = OtlpExport(MetricsHub("demo-1"), "demo-1")
    export.flush()
    export.flush()
    collector.status = 200
    export.flush()
    export.close()
    assert caplog.text.count("could not be exported") == 1
    assert caplog.text.count("exported again") == 1
    assert "secret" not in caplog.text
    assert collector.requests


def test_a_variable_that_the_exporter_cannot_read_ends_no_run(collector, monkeypatch, caplog):
    name = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER"
    monkeypatch.setenv(name, "nowhere")
    export = OtlpExport(MetricsHub("demo-1"), "demo-1")
    export.flush()
    export.close()
    assert caplog.text.count("nothing is exported") == 1
    assert not collector.requests


def test_a_run_has_a_switch_for_it():
    assert RunConfig(otel=True).to_dict()["otel"]
