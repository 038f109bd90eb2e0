"""Sinks get every number under the name of the table, and no failure of theirs reaches the run."""

import os
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from worldloom.core.exceptions import MissingDependencyError
from worldloom_dist.metrics import sinks as sinks_module
from worldloom_dist.metrics.sinks import (
    MediaWatch,
    SinkThread,
    TensorBoardSink,
    check_sinks,
    open_sinks,
)


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

    def close(self) -> None:
        self.is_closed = True


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
        finish=lambda: calls.update(finished=True),
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.update(options) or run
    fake.Image = lambda path: ("image", path)
    fake.Video = lambda path, format: ("video", path, format)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    sinks = open_sinks(tmp_path, "quick-0001-abc", {"tensorboard": False, "wandb": True, "seed": 3})
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


def test_a_sink_that_hangs_holds_nobody_up(caplog):
    class Hanging(Remembering):
        def write(self, env_steps, values) -> None:
            time.sleep(5.0)

    sinks = SinkThread({"slow": Hanging})
    started = time.monotonic()
    for step in range(3000):
        sinks.write(step, {})
    sinks.close(timeout_s=0.01)
    assert time.monotonic() - started < 3.0
    assert caplog.text.count("records are dropped") == 1


def test_pictures_are_found_once_and_only_when_they_are_whole(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(sinks_module.time, "monotonic", lambda: now[0])
    folder = tmp_path / "videos"
    watch = MediaWatch(folder)
    assert watch.fresh() == []
    folder.mkdir()
    for number, name in enumerate(
        ("old.gif", "open_loop-image-0000012000.mp4", "growing.png", "notes.txt")
    ):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (number * 1e9,) * 2)  # whatever a clock says
    assert watch.fresh() == []
    now[0] += 3.0
    (folder / "growing.png").write_bytes(b"xx")
    assert [(m.name, m.path.suffix, m.env_steps) for m in watch.fresh()] == [
        ("old", ".gif", None),
        ("open_loop-image", ".mp4", 12000),
    ]
    assert watch.fresh() == []
    assert [m.name for m in watch.fresh(unchanged_s=0.0)] == ["growing"], (
        "at the end of a run nothing grows any more"
    )
    assert MediaWatch(folder).fresh() == [], "a resumed run does not show old pictures again"


def test_a_sink_without_its_package_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"worldloom-dist\[wandb\]"):
        check_sinks(tensorboard=False, wandb=True)
    check_sinks(tensorboard=False, wandb=False)
