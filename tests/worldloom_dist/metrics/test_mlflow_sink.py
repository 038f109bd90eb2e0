"""MLflow holds every number under its own name, and a resumed run goes on in the same run there."""

import json
import socket

import pytest

from worldloom_dist.metrics.mlflow_sink import MlflowSink

pytest.importorskip("mlflow", reason="needs worldloom-dist[mlflow]")
pytest.importorskip("alembic", reason="needs worldloom-dist[mlflow]")
pytestmark = pytest.mark.filterwarnings("ignore")  # SQLAlchemy and MLflow warn of each other
CONFIG = {"agent": "tdmpc2:ci", "env": {"size": 64, "path": None}, "list": [1, 2]}
NAMES = {"policy_lag_updates": 1.5, "policy_lag_updates/p99": 4.0, "loss/total": 0.25}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def client_of(folder):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def test_a_run_and_its_resumption_are_one_run_in_the_run_folder(tmp_path):
    picture = tmp_path / "open_loop.png"
    picture.write_bytes(b"picture")
    sink = MlflowSink(tmp_path, "quick-0001-abc", CONFIG)
    sink.write(100, NAMES)
    sink.show(100, "videos/open_loop", picture)
    sink.close("completed")
    known = json.loads((tmp_path / "mlflow.json").read_text())
    client = client_of(tmp_path)
    run = client.get_run(known["run_id"])
    assert run.info.run_name == "quick-0001-abc"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"agent": "tdmpc2:ci", "env.size": "64", "list": "[1, 2]"}
    assert run.data.metrics == NAMES
    assert [file.path for file in client.list_artifacts(known["run_id"], "videos")] == [
        "videos/open_loop.png"
    ]
    assert (tmp_path / "mlflow").is_dir()

    sink = MlflowSink(tmp_path, "quick-0001-abc", {**CONFIG, "agent": "tdmpc2:5m"})
    assert client.get_run(known["run_id"]).info.status == "RUNNING"
    sink.write(200, {"loss/total": 0.125})
    sink.close("completed")
    assert json.loads((tmp_path / "mlflow.json").read_text()) == known
    history = client.get_metric_history(known["run_id"], "loss/total")
    assert [(point.step, point.value) for point in history] == [(100, 0.25), (200, 0.125)]
    run = client.get_run(known["run_id"])
    assert run.data.params["agent"] == "tdmpc2:ci"
    assert run.data.tags["resumed/agent"] == "tdmpc2:5m"
    experiment = client.get_experiment_by_name("worldloom")
    assert len(client.search_runs([experiment.experiment_id])) == 1

    client.delete_run(known["run_id"])
    (tmp_path / "mlflow.json").write_text(json.dumps({**known, "run_id": "f" * 32}))
    MlflowSink(tmp_path, "quick-0001-abc", CONFIG).close("stopped")
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] not in (
        known["run_id"],
        "f" * 32,
    )


def test_a_server_that_does_not_answer_is_told_of_at_once(tmp_path, monkeypatch, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            MlflowSink(tmp_path, "quick-0001-abc", CONFIG)
    assert caplog.text.count("nothing answers at http://127.0.0.1") == 1
    assert not (tmp_path / "mlflow.json").exists()


def test_another_place_is_another_run_and_passwords_are_not_kept(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pendulum")
    known = {"tracking_uri": "http://host", "run_id": "0" * 32}
    (tmp_path / "run/mlflow.json").write_text(json.dumps(known))
    sink = MlflowSink(tmp_path / "run", "quick-0001-abc", CONFIG)
    sink.write(1, {"model_stat/odd=name+": 1.0})
    sink.close("completed")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/shared.db")
    experiment = client.get_experiment_by_name("pendulum")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"model_stat/odd_name_": 1.0}
    kept = json.loads((tmp_path / "run/mlflow.json").read_text())
    assert kept == {"tracking_uri": f"sqlite:///{tmp_path}/shared.db", "run_id": run.info.run_id}
    assert not (tmp_path / "run/mlflow.db").exists()


@pytest.mark.parametrize(
    ("status", "there"),
    [("completed", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED"), ("died", "FAILED")],
)
def test_how_a_run_ended_is_said_there(tmp_path, status, there):
    MlflowSink(tmp_path, "quick-0001-abc", CONFIG).close(status)
    known = json.loads((tmp_path / "mlflow.json").read_text())
    assert client_of(tmp_path).get_run(known["run_id"]).info.status == there
