"""Sinks get every number under the name of the table, and no failure of theirs reaches the run."""

import sys
import threading
import types
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom_dist.metrics.sinks import (
    NEEDS,
    SinkThread,
    TensorBoardSink,
    check_sinks,
    open_sinks,
)

ALL = dict.fromkeys(NEEDS, False)


def read_events(folder: Path) -> list[Event]:
    """Events of a folder; each record is length, checksum, bytes, checksum."""
    assert RecordWriter
    events = []
    for path in folder.glob("events.*"):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


class Remembering:
    def __init__(self) -> None:
        self.records = []
        self.shown = []
        self.is_closed = False

    def write(self, env_steps, values) -> None:
        self.records.append((env_steps, values))

    def show(self, env_steps, name, path) -> None:
        self.shown.append((env_steps, name, path))

    def close(self, status: str) -> None:
        self.is_closed = True
        self.status = status


class Broken(Remembering):
    def write(self, env_steps, values) -> None:
        super().write(env_steps, values)
        raise ConnectionError("no route")


def test_tensorboard_holds_numbers_by_path_and_animated_pictures_as_they_are(tmp_path):
    picture = tmp_path / "report.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(picture, save_all=True, append_images=frames[1:])
    sinks = SinkThread({"tensorboard": lambda: TensorBoardSink(tmp_path / "events")})
    sinks.write(100, {"loss{name=total}": 1.5, "replay_op_seconds{op=insert}:p99": 0.25})
    sinks.show(100, "videos/report", picture)
    sinks.show(100, "videos/clip", tmp_path / "clip.mp4")
    sinks.close()
    values = {v.tag: (e.step, v) for e in read_events(tmp_path / "events") for v in e.summary.value}
    assert values["loss/total"][0] == 100
    assert values["loss/total"][1].simple_value == 1.5
    assert values["replay/replay_op_seconds/insert/p99"][1].simple_value == 0.25
    assert values["videos/report"][1].image.encoded_image_string == picture.read_bytes()
    assert "videos/clip" not in values


def test_wandb_gets_one_resumable_run_with_env_steps_as_its_axis(tmp_path, monkeypatch):
    calls = {}
    logged = []
    run = types.SimpleNamespace(
        define_metric=lambda name, **more: calls.setdefault("metrics", {}).update({name: more}),
        log=logged.append,
        finish=lambda **options: calls.update(finished=True, **options),
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.update(options) or run
    fake.Image = lambda path: ("image", path)
    fake.Video = lambda path, format: ("video", path, format)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    sinks = open_sinks(tmp_path, "quick-0001-abc", {**ALL, "wandb": True, "seed": 3})
    sinks.write(20, {"loss{name=total}": 1.5})
    sinks.show(20, "videos/a", tmp_path / "a.mp4")
    sinks.show(20, "videos/b", tmp_path / "b.png")
    sinks.close()
    assert {key: calls[key] for key in ("project", "id", "resume", "dir")} == {
        "project": "worldloom",
        "id": "quick-0001-abc",
        "resume": "allow",
        "dir": str(tmp_path),
    }
    assert calls["metrics"]["*"] == {"step_metric": "env_steps"}
    assert logged[0] == {"loss/total": 1.5, "env_steps": 20}
    assert logged[1]["videos/a"] == ("video", str(tmp_path / "a.mp4"), "mp4")
    assert logged[2]["videos/b"] == ("image", str(tmp_path / "b.png"))
    assert calls["finished"]
    assert calls["exit_code"] == 0


@pytest.mark.parametrize("status", ["failed", "died"])
def test_a_run_that_failed_has_failed_in_wandb(tmp_path, monkeypatch, status):
    calls = {}
    run = types.SimpleNamespace(
        define_metric=lambda *a, **b: None, finish=lambda **o: calls.update(o)
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    name = "it's: 50%?, #3/a\\b-abc123"
    sinks = open_sinks(tmp_path, name, {**ALL, "wandb": True})
    sinks.close(status)
    assert calls["exit_code"] == 1
    assert calls["name"] == name
    assert not set(calls["id"]) & set(":;,#?/'%\\ ")
    assert calls["id"].endswith("-abc123")


def test_a_sink_is_told_how_the_run_ended_if_it_asks():
    class Short(Remembering):
        def close(self) -> None:
            self.is_closed = True

    asks = Remembering()
    short = Short()
    sinks = SinkThread({"asks": lambda: asks, "short": lambda: short})
    sinks.close("failed")
    assert (asks.is_closed, asks.status) == (True, "failed")
    assert short.is_closed


def test_a_sink_that_cannot_be_opened_is_tried_again(caplog):
    calls = []
    good = Remembering()

    def opens_late():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return good

    def never():
        raise ConnectionError("no route")

    sinks = SinkThread({"late": opens_late, "never": never})
    for step in range(6):
        sinks.write(step, {})
    sinks.close()
    assert len(calls) == 3
    assert [step for step, _ in good.records] == [1, 2, 3, 4, 5]
    assert good.is_closed
    assert sinks.given_up == {"never": "ConnectionError: no route"}
    assert caplog.text.count("given up after 3 failures") == 1


def test_a_resumed_run_leaves_out_in_tensorboard_what_it_does_again(tmp_path):
    for life, steps in enumerate(((100, 200, 300), (200, 400))):
        sinks = SinkThread({"tensorboard": lambda: TensorBoardSink(tmp_path)})
        for step in steps:
            sinks.write(step, {"loss{name=total}": 1.0})
        sinks.close()
        (made,) = tmp_path.glob("events.*.tfevents.1*")
        made.rename(tmp_path / f"events.{life}")  # files are named by the second
    begun = [e.step for e in read_events(tmp_path) if e.session_log.status == 1]
    assert begun == [200], "readers drop what lies at or beyond it"


def test_a_broken_sink_is_given_up_and_the_others_go_on(caplog):
    def refuse():
        raise PermissionError("no account")

    good = Remembering()
    broken = Broken()
    sinks = SinkThread({"never": refuse, "broken": lambda: broken, "good": lambda: good})
    for step in range(10):
        sinks.write(step, {"loss{name=total}": step})
    sinks.close()
    assert [step for step, _ in good.records] == list(range(10))
    assert good.is_closed
    assert len(broken.records) == 3
    assert caplog.text.count("no account") == caplog.text.count("no route") == 1
    assert "given up after 3 failures" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt(), ValueError("a\nb")])
def test_a_sink_that_would_end_its_thread_costs_itself_only(caplog, error):
    class Leaving(Remembering):
        def write(self, env_steps, values) -> None:
            raise error

    def refuse():
        raise error

    good = Remembering()
    sinks = SinkThread({"never": refuse, "leaving": Leaving, "good": lambda: good})
    for step in range(10):
        sinks.write(step, {})
    sinks.close()
    assert [step for step, _ in good.records] == list(range(10))
    assert good.is_closed
    assert set(sinks.given_up) == {"never", "leaving"}
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "given up" in text]) == 2
    assert not [text for text in told if "\n" in text]


def test_a_password_in_an_error_is_not_logged(caplog):
    def refuse():
        raise OSError("API request to https://me:secret@host/api?write_token=abc failed")

    SinkThread({"never": refuse}).close()
    assert "https://host/api?write_token=... failed" in caplog.text
    assert "secret@" not in caplog.text


def test_a_sink_that_hangs_holds_nobody_up(caplog):
    may_write = threading.Event()

    class Hanging(Remembering):
        def write(self, env_steps, values) -> None:
            assert may_write.wait(60)

    sinks = SinkThread({"slow": Hanging})
    for step in range(3000):
        sinks.write(step, {})
    sinks.close(timeout_s=0.01)
    assert caplog.text.count("records are dropped") == 1
    assert caplog.text.count("what they had not written is lost") == 1
    may_write.set()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tensorboard", r"needs tensorboardX: .*\[training\]"),
        ("wandb", r"needs wandb: .*worldloom-dist\[wandb\]"),
        ("trackio", r"needs trackio: .*worldloom-dist\[trackio\]"),
        ("mlflow", r"needs mlflow: .*worldloom-dist\[mlflow\]"),
        ("otel", r"needs opentelemetry\S*: .*worldloom-dist\[otel\]"),
    ],
)
def test_a_sink_without_its_package_is_refused_with_the_line_that_installs_it(
    monkeypatch, name, line
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=line):
        check_sinks([name])
    check_sinks([])


def test_a_package_whose_parent_is_missing_is_missing(monkeypatch):
    def find(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(MissingDependencyError, match="otel"):
        check_sinks(["otel"])


@pytest.mark.parametrize(
    ("name", "variables", "sentence"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "mlruns"}, "MLFLOW_TRACKING_URI must be"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "file:///tmp/x"}, "a store of files"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "htp://host"}, "got 'htp://host'"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://"}, "http"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://host:5o00"}, "got 'http://host:5o00'"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://[::1"}, "MLFLOW_TRACKING_URI must be"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "host:5000"}, "got 'host:5000'; correct it"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite://"}, "got 'sqlite://'"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://host:99999"}, "TRACKIO_SERVER_URL must be"),
        ("otel", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:secret@:4318"}, "got 'http://:4318'"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "ftp://me:secret@host"}, "got 'ftp://host'"),
        ("trackio", {"TRACKIO_SERVER_URL": "host:7860"}, "TRACKIO_SERVER_URL must be"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://host"}, "write token"),
        ("otel", {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "must be http://HOST:PORT"),
        ("otel", {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "grpc://x"}, "METRICS_ENDPOINT"),
        ("otel", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "must be http/protobuf, got 'grpc'"),
        ("otel", {"OTEL_METRIC_EXPORT_INTERVAL": "1s"}, "milliseconds"),
    ],
)
def test_variables_that_lead_nowhere_are_refused_in_one_sentence(
    monkeypatch, name, variables, sentence
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as error:
        check_sinks([name])
    assert sentence in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "https://host/mlflow"}),
        ("mlflow", {"MLFLOW_TRACKING_URI": "postgresql+psycopg2://u:p@host/db"}),
        ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:////data/mlflow.db"}),
        ("mlflow", {"MLFLOW_TRACKING_URI": "databricks"}),
        ("trackio", {"TRACKIO_SERVER_URL": "https://host?write_token=abc"}),
        ("otel", {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://host:4318/otlp"}),
    ],
)
def test_variables_that_lead_somewhere_are_taken(monkeypatch, name, variables):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    check_sinks([name])
