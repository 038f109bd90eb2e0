"""The view of a run from its folder, on a terminal and as lines, and the ``status`` command."""

import dataclasses
import io
import json
import logging
import os
import sys

import pytest

from tests.worldloom_dist.holding import holding
from worldloom_dist import status
from worldloom_dist.run.console import PROGRESS, Screen, plain, render
from worldloom_dist.run.view import View, duration, facts, read_view

VIEW = View(
    eta_s=125.0,
    run_id="quick-0001-abcdef",
    title="tdmpc2:ci on gym:Pendulum-v1, seed 1",
    env_steps=2500,
    target=5000,
    env_steps_per_s=20.0,
    updates_per_s=19.5,
    train_return=-230.25,
    evaluation={"return_mean": -171.1, "return_std": 9.0, "env_steps": 2000},
    train_ratio=381.0,
    target_ratio=384.0,
    lag=6.0,
    lag_p99=20.0,
    stored=2510,
    capacity=100_000,
    restarts={"worker": 2, "env": 0},
    phase="learner-bound",
    wall_time_s=130.0,
    train_steps=2400,
)


@pytest.fixture
def folder(tmp_path):
    run = {
        "agent": "tdmpc2:ci",
        "env": {"env": "toy:point"},
        "seed": 1,
        "env_steps": 1000,
        "replay": {"capacity_steps": 500},
    }
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "r-1", "run": run}))
    summary = {
        "status": "running",
        "env_steps": 400,
        "train_steps": 9,
        "rows": {"stored": 410},
        "train_ratio_actual": 11.5,
        "train_return_mean": 2.5,
        "eval": None,
        "wall_time_s": 61.0,
        "restarts": {"worker": 1},
        "bottleneck": "env-bound",
        "staleness": {"mean": 1.0, "p99": 5.0},
        "throughput": {"env_steps_per_s": 7.0, "updates_per_s": 2.0},
        "eta_s": 60.0,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    records = [
        {
            "kind": "train",
            "env_steps_per_s": 10.0,
            "updates_per_s": 3.0,
            "replay_ratio_target": 12.0,
        },
        {"kind": "eval"},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records) + '{"kind": "tr'
    )
    return tmp_path


def change(folder, **values):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def age(folder, seconds=3600):
    for path in folder.iterdir():
        os.utime(path, (path.stat().st_atime - seconds, path.stat().st_mtime - seconds))


def test_a_running_run_shows_its_present_rates_and_a_finished_one_its_mean(folder):
    view = read_view(folder)
    assert (view.status, view.env_steps_per_s, view.target_ratio, view.phase) == (
        "running",
        10.0,
        12.0,
        "env-bound",
    )
    assert view.progress == 0.4
    assert view.eta_s == 60.0
    change(folder, eta_s=None)
    assert read_view(folder).eta_s is None
    change(folder, status="completed", env_steps=1000, eta_s=60.0)
    view = read_view(folder)
    assert (view.status, view.env_steps_per_s, view.eta_s) == ("completed", 7.0, None)


def test_a_run_whose_process_is_gone_has_died(folder):
    age(folder)
    assert read_view(folder).status == "died"


def test_a_run_that_died_before_the_clock_was_set_back_has_died(folder):
    age(folder, seconds=-3600)
    assert read_view(folder).status == "died"


def test_a_run_whose_lock_is_held_is_alive_however_long_it_is_silent(folder):
    (folder / "lock").touch()
    age(folder)
    with holding(folder / "lock"):
        assert read_view(folder).status == "running"
    assert read_view(folder).status == "died"


def test_status_prints_the_view_and_its_exit_status_says_how_the_run_is(folder, capsys):
    assert status.main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "r-1: tdmpc2:ci on toy:point, seed 1: running" in text
    assert "400 of 1,000 env steps, 40%, 1:01, 1:00 to go" in text
    assert "11.5 (target 12)" in text
    change(folder, status="failed", error="TrainingError: no workers")
    assert status.main([str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "TrainingError: no workers"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_status_waits_for_the_end_where_there_is_no_terminal(folder, capsys, monkeypatch, words):
    waits = []

    def end(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            change(folder, status="failed", error="TrainingError: no workers")

    monkeypatch.setattr(status.time, "sleep", end)
    assert status.main([str(folder), "--watch", *words]) == 1
    assert len(waits) == 2
    text = capsys.readouterr().out
    assert text.count("no workers") == 1, "only the end is told"
    if words:
        assert json.loads(text)["status"] == "failed"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_watched_run_whose_folder_is_deleted_is_one_sentence(folder, capsys, monkeypatch, words):
    monkeypatch.setattr(status.time, "sleep", lambda _: (folder / "config.json").unlink())
    assert status.main([str(folder), "--watch", *words]) == 2
    shown = capsys.readouterr()
    assert "holds no run" in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_ctrl_c_ends_watching_and_tells_the_last_view(folder, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupt)
    assert status.main([str(folder), "--watch"]) == 0
    assert "400 of 1,000 env steps" in capsys.readouterr().out


def test_status_of_no_run_is_one_sentence(tmp_path, capsys):
    assert status.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_every_fact_is_in_the_box_and_in_the_lines():
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=110, force_terminal=False).print(render(VIEW))
    for text in (out.getvalue(), plain(VIEW)):
        for label, value in facts(VIEW):
            assert label in text
            assert value in text
        assert "2,500 of 5,000 env steps, 50%, 2:10, 2:05 to go" in text
    assert "worker 2" in plain(VIEW)


def record(name, text):
    return logging.LogRecord(name, logging.INFO, "", 0, text, None, None)


def test_a_terminal_shows_log_lines_and_the_view_and_leaves_out_progress_lines():
    out = io.StringIO()
    screen = Screen(out, is_live=True)
    screen.show(lambda: VIEW)
    screen.emit(record("worldloom_dist", "eval at [bold]2,000[/bold]"))
    screen.emit(record(PROGRESS, "env_steps 2,500/5,000"))
    screen.close()
    screen.emit(record("worldloom_dist", "completed"))
    text = out.getvalue()
    assert "eval at [bold]2,000[/bold]" in text
    assert "learner-bound" in text
    assert "env_steps 2,500/5,000" not in text
    assert text.endswith("completed\n")


def test_without_a_terminal_there_are_only_lines():
    out = io.StringIO()
    screen = Screen(out)
    screen.show(lambda: pytest.fail("no one sees it"))
    screen.emit(record(PROGRESS, "env_steps 2,500/5,000"))
    assert out.getvalue() == "env_steps 2,500/5,000\n"


def test_a_terminal_that_breaks_does_not_end_the_run(caplog):
    screen = Screen(io.StringIO(), is_live=True)
    screen.show(lambda: 1 / 0)
    assert not screen.is_live
    assert "live view is given up" in caplog.text


def test_durations_read_as_clocks():
    assert [duration(s) for s in (75, 3700, 2 * 86400 + 5)] == ["1:15", "1:01:40", "2d 0:00:05"]


@pytest.mark.parametrize(
    "failure", [ValueError("I/O operation on closed file."), BrokenPipeError()]
)
def test_stream_that_an_env_has_closed_costs_lines_and_one_line_on_stderr(failure, capsys):
    class Gone(io.StringIO):
        def write(self, text):
            raise failure

    screen = Screen(Gone())
    for _ in range(3):
        screen.handle(logging.makeLogRecord({"msg": "on it goes"}))
    error = capsys.readouterr().err
    assert "the terminal cannot be written (" in error
    assert error.count("\n") == 1


def test_nothing_is_raised_where_stderr_is_closed_too(monkeypatch):
    stream = io.StringIO()
    screen = Screen(stream)
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    screen.handle(logging.makeLogRecord({"msg": "on it goes"}))


def test_line_that_cannot_be_formatted_is_told_as_the_library_does(capsys):
    Screen(io.StringIO()).handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    assert "Logging error" in capsys.readouterr().err


OFFLINE = View(
    run_id="offline-0001",
    title="tdmpc2:ci on none, seed 1",
    train_steps=150,
    target_updates=600,
    updates_per_s=5.0,
    losses={"total": 0.5, "reward": 1.25},
    stored=612,
    phase="training",
    eta_s=90.0,
)


def test_a_run_without_an_env_is_seen_by_its_updates():
    assert OFFLINE.progress == 0.25
    text = plain(OFFLINE)
    assert "150 of 600 updates, 25%" in text
    assert "total 0.5, reward 1.25" in text
    assert "return" not in text
    assert "env steps" not in text


def test_a_run_folder_without_an_env_is_read_by_its_updates(folder):
    config = json.loads((folder / "config.json").read_text())
    config["run"] |= {"env": {"env": "none"}, "train_steps": 50}
    (folder / "config.json").write_text(json.dumps(config))
    record = {"kind": "train", "env_steps": 0, "loss{name=total}": 0.25, "loss{name=bad}": None}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    view = read_view(folder)
    assert (view.target_updates, view.train_steps) == (50, 9)
    assert view.losses == {"total": 0.25}


def test_the_last_view_is_drawn_as_the_run_ended():
    stream = io.StringIO()
    screen = Screen(stream, is_live=True)
    screen.show_last(lambda: VIEW)
    assert not stream.getvalue(), "where nothing was shown"
    screen.show(lambda: VIEW)
    screen.show_last(lambda: dataclasses.replace(VIEW, status="completed", env_steps=5000))
    screen.close()
    assert "completed" in stream.getvalue()
    assert "5,000 of 5,000 env steps" in stream.getvalue()
