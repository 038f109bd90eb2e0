"""A run and its resumption are one run in MLflow, and its last numbers reach a collector."""

import json

import pytest

from tests.worldloom_dist.metrics.test_otlp import Collector, metrics_of, serving
from tests.worldloom_dist.tiny_runs import TINY
from worldloom_dist.launch import main

pytest.importorskip("mlflow", reason="needs worldloom-dist[mlflow]")
pytest.importorskip("alembic", reason="needs worldloom-dist[mlflow]")
pytestmark = pytest.mark.filterwarnings("ignore")  # SQLAlchemy and MLflow warn of each other


def test_a_run_that_goes_on_is_one_run_everywhere(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--run-dir", str(run), "--metrics-port", "0", "--runtime", "local"]
    with serving(Collector()) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
        assert main([*words, "--env-steps", "60", "--mlflow", "--otel"]) == 0
        assert main(["--resume", str(run), "--env-steps", "90"]) == 0
    known = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow.db")
    history = client.get_metric_history(known["run_id"], "env_steps_total")
    assert max(point.step for point in history) >= 90
    assert min(point.step for point in history) <= 70
    assert client.get_run(known["run_id"]).data.tags["resumed/env_steps"] == "90"
    totals = []
    for request in collector.requests:
        found, resource = metrics_of(request)
        points = found["worldloom_env_steps_total"].sum.data_points
        totals.append(sum(point.as_double for point in points))
        assert (
            resource["service.instance.id"]
            == json.loads((run / "config.json").read_text())["run_id"]
        )
    assert len(totals) == 2
    assert totals[0] >= 60
