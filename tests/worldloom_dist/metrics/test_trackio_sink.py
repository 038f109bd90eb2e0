"""Trackio gets every number under its own name, and a resumed run goes on in the same run there."""

import json
import os
import subprocess
import sys
import types

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.metrics.sinks import NEEDS, open_sinks
from worldloom_dist.metrics.trackio_sink import TrackioSink


def test_trackio_gets_one_resumable_run_in_the_run_folder(tmp_path, monkeypatch):
    calls = {}
    logged = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: calls.update(finished=True),
    )
    fake = types.ModuleType("trackio")
    fake.init = lambda **options: calls.update(options) or run
    fake.Image = lambda path: ("image", path)
    fake.Video = lambda path: ("video", path)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setenv("TRACKIO_DIR", "")
    monkeypatch.delenv("TRACKIO_DIR")
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    config = {**dict.fromkeys(NEEDS, False), "trackio": True, "seed": 3}
    sinks = open_sinks(tmp_path, "quick-0001-abc", config)
    sinks.write(20, {"loss{name=total}": 1.5})
    sinks.show(20, "videos/a", tmp_path / "a.mp4")
    sinks.show(20, "videos/b", tmp_path / "b.png")
    sinks.show(20, "videos/c", tmp_path / "c.txt")
    sinks.close()
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio")
    assert {key: calls[key] for key in ("project", "name", "resume", "embed")} == {
        "project": "worldloom",
        "name": "quick-0001-abc",
        "resume": "allow",
        "embed": False,
    }
    assert logged == [
        (20, {"loss/total": 1.5}),
        (20, {"videos/a": ("video", str(tmp_path / "a.mp4"))}),
        (20, {"videos/b": ("image", str(tmp_path / "b.png"))}),
    ]
    assert calls["finished"]


SCRIPT = """
import pathlib, sys
from worldloom_dist.metrics.trackio_sink import TrackioSink
sink = TrackioSink(pathlib.Path(sys.argv[1]), "quick-0001-abc", {"seed": 1, "env": {"a": None}})
sink.write(int(sys.argv[2]), {"loss/total": 0.5, "policy_lag_updates/p99": 4.0})
sink.close("completed")
"""
READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
assert len(SQLiteStorage.get_runs("worldloom")) == 1
print(json.dumps(SQLiteStorage.get_logs("worldloom", "quick-0001-abc")))
"""


def test_the_real_trackio_keeps_both_parts_of_a_run_in_its_folder(tmp_path):
    pytest.importorskip("trackio", reason="needs worldloom-dist[trackio]")
    assert TrackioSink
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("TRACKIO_")},
        "HF_HUB_OFFLINE": "1",
    }

    def run(code, *words, **more):
        command = [sys.executable, "-c", code, *words]
        options = {"check": True, "timeout": 100, "capture_output": True, "text": True}
        return subprocess.run(command, env={**environment, **more}, **options).stdout

    for step in ("100", "200"):
        run(SCRIPT, str(tmp_path), step)
    found = json.loads(run(READ, TRACKIO_DIR=str(tmp_path / "trackio")))
    assert [record["step"] for record in found] == [100, 200]
    assert found[1]["policy_lag_updates/p99"] == 4.0


def test_a_second_run_of_a_process_does_not_write_into_the_folder_of_the_first(
    tmp_path, monkeypatch
):
    fake = types.ModuleType("trackio")
    fake.init = lambda **options: types.SimpleNamespace(finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setenv("TRACKIO_DIR", "")
    fake.utils = types.SimpleNamespace(TRACKIO_DIR=tmp_path / "one" / "trackio")
    TrackioSink(tmp_path / "one", "one", {})
    with pytest.raises(ConfigurationError, match="a process of its own"):
        TrackioSink(tmp_path / "two", "two", {})
    TrackioSink(tmp_path / "one", "one", {})
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all"))
    fake.utils.TRACKIO_DIR = tmp_path / "all"
    TrackioSink(tmp_path / "two", "two", {})
