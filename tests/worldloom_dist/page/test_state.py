"""What the page of a run shows is what the run has written, and no more of it than fits."""

import json
import os
import shlex

import pytest

from tests.worldloom_dist.written_runs import write_run
from worldloom_dist.page.app import page_html
from worldloom_dist.page.state import MOST_ROWS, RunState
from worldloom_dist.page.videos import video_path, videos_of


def curve_of(state, name):
    return next(curve for curve in state["curves"] if curve["name"] == name)


def test_the_numbers_are_those_of_the_run(tmp_path):
    folder = write_run(tmp_path / "run", records=40, summary={"status": "completed"})
    state = RunState(folder).read()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert state["axis"] == "env_steps"
    assert state["axes"]["env_steps"] == [record["env_steps"] for record in train]
    assert state["axes"]["hours"][-1] == pytest.approx(400 / 3600, rel=1e-6)
    values = curve_of(state, "total")["values"]
    assert values[-1] == pytest.approx(train[-1]["loss{name=total}"], rel=1e-4)
    assert values[0] is None, "no update had been made"
    assert [e["return_mean"] for e in state["evaluations"]] == [
        record["return_mean"] for record in records if record["kind"] == "eval"
    ]
    assert state["view"]["status"] == "completed"
    assert state["view"]["progress"] == 1.0
    assert state["spent"]["learner"]["forward_backward"] == pytest.approx(8.4 * 12)
    assert state["faults"] == []


def test_only_new_lines_are_read_and_a_half_written_one_waits(tmp_path):
    folder = write_run(tmp_path / "run", records=10)
    log = folder / "metrics.jsonl"
    run = RunState(folder)
    assert len(run.read()["axes"]["env_steps"]) == 10
    version = run.version()
    line = json.dumps({"kind": "train", "env_steps": 6000, "train_steps": 5400, "time": 1.8e9})
    with log.open("a") as file:
        file.write(line[:20])
    assert len(run.read()["axes"]["env_steps"]) == 10
    with log.open("a") as file:
        file.write(line[20:] + "\n")
    assert run.read()["axes"]["env_steps"][-1] == 6000
    assert run.version() != version
    log.write_text(line + "\n")
    assert run.read()["axes"]["env_steps"] == [6000], "a log that is shorter is another one"


def test_a_long_run_is_thinned_and_keeps_its_extremes(tmp_path):
    folder = write_run(tmp_path / "run", records=3 * MOST_ROWS)
    with (folder / "metrics.jsonl").open("a") as file:
        for place in range(800):
            speed = 1e6 if place % 4 == 0 else 1.0
            record = {"kind": "train", "env_steps": 5001 + place, "updates_per_s": speed}
            file.write(json.dumps({**record, "time": 1.8e9}) + "\n")
    state = RunState(folder).read()
    curve = curve_of(state, "updates/s")
    assert len(curve["values"]) == len(state["axes"]["env_steps"]) < 2 * MOST_ROWS
    assert max(curve["high"]) == 1e6
    merged = zip(curve["low"], curve["values"], curve["high"], strict=True)
    assert any(low < value < high == 1e6 for low, value, high in merged)


def test_what_went_wrong_is_listed(tmp_path):
    folder = write_run(
        tmp_path / "run",
        summary={
            "status": "failed",
            "error": "TrainingError: <b>no</b>",
            "restarts": {"env": 3, "worker": 0},
            "quarantined": {"worker 1": "it raised"},
            "rows": {"stored": 1, "lost_open": 7},
        },
        last={"checkpoint_failures_total": 2.0, "workers{state=alive}": 63, "workers_wanted": 64},
    )
    state = RunState(folder).read()
    assert {(fault["count"], fault["what"]) for fault in state["faults"]} == {
        (3, "restarts of envs"),
        (2, "checkpoints could not be written"),
        (1, "worker 1 is not started again: it raised"),
        (7, "rows that no acknowledgement had covered are lost"),
    }
    assert state["workers"] == {"alive": 63, "wanted": 64}
    assert state["view"]["error"] == "TrainingError: <b>no</b>"


def test_everything_that_failed_is_listed(tmp_path):
    folder = write_run(
        tmp_path / "run",
        summary={
            "imports_left_out": {"a.npz": "it is no file"},
            "evaluations_failed": 3,
            "sinks_given_up": {"wandb": "ConnectionError: no route"},
            "updates_lost": 12,
            "eval": {
                "env_steps": 10,
                "return_mean": 1.0,
                "lost_envs": {"2": "raised: ValueError"},
                "cut_episodes": 4,
                "video_problems": ["no video of env x"],
            },
        },
    )
    faults = RunState(folder).read()["faults"]
    assert {(fault["count"], fault["what"]) for fault in faults} == {
        (1, "a.npz could not be imported: it is no file"),
        (3, "evaluations failed; console.log says why"),
        (1, "wandb gets no numbers any more: ConnectionError: no route"),
        (12, "updates died with their learners and were owed again"),
        (1, "env 2 of the last evaluation failed too often: raised: ValueError"),
        (4, "episodes of the last evaluation had no end and were cut"),
        (1, "no video of env x"),
    }


def test_a_fault_of_an_env_is_told_once(tmp_path):
    folder = write_run(
        tmp_path / "run",
        summary={"restarts": {"env": 3, "worker": 1}},
        last={"env_errors_total{reason=raised}": 2.0, "env_errors_total{reason=hung}": 1.0},
    )
    faults = RunState(folder).read()["faults"]
    assert [(fault["count"], fault["what"]) for fault in faults] == [
        (1, "restarts of workers"),
        (2, "envs raised an error"),
        (1, "envs hung and were ended"),
    ]


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    state = RunState(write_run(tmp_path / "run", records=0), is_live=True).read()
    assert state["curves"] == state["evaluations"] == state["videos"] == []
    assert state["view"]["status"] == "running"


def test_an_offline_run_is_over_its_updates(tmp_path):
    config = {"env": {"env": "none"}, "replay": {"capacity_steps": 9, "load": "data.npz"}}
    state = RunState(write_run(tmp_path / "run", config=config)).read()
    assert state["axis"] == "updates"
    assert state["view"]["is_offline"]
    assert state["view"]["title"] == "tdmpc2:ci on data.npz, offline, seed 1"
    assert state["axes"]["updates"][-1] == 10_000


def test_the_page_says_how_many_videos_it_leaves_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    for number in range(11):
        (folder / "videos" / f"eval-{number:09d}-0.gif").write_bytes(b"GIF89a")
    state = RunState(folder).read()
    assert (len(state["videos"]), state["videos_left_out"]) == (8, 3)


def test_the_page_names_the_run_as_it_is_typed(tmp_path):
    folder = write_run(tmp_path / "my runs" / "it's one")
    typed = RunState(folder).read()["run"]["typed"]
    assert shlex.split(f"worldloom status {typed}") == ["worldloom", "status", str(folder)]
    assert "worldloom status ${state.run.typed} says" in page_html()


def test_a_video_from_before_the_clock_was_set_back_is_shown_while_the_run_is_live(tmp_path):
    (tmp_path / "best-0.gif").write_bytes(b"x")
    os.utime(tmp_path / "best-0.gif", (4e9, 4e9))
    assert [video["file"] for video in videos_of(tmp_path)] == ["best-0.gif"]


def test_the_newest_video_of_each_kind_comes_first(tmp_path):
    names = ["eval-000001000-0.mp4", "eval-000002000-0.mp4", "open_loop-image-0000000500.gif"]
    for age, name in enumerate(
        reversed([*names, "best-0.gif", "eval-1-0.half.mp4", "index.jsonl"])
    ):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    videos = videos_of(tmp_path)
    assert [video["caption"] for video in videos] == [
        "best-0",
        "imagined image at 500 env steps",
        "evaluation at 2,000 env steps",
        "evaluation at 1,000 env steps",
    ]
    assert video_path(tmp_path, "best-0.gif") == tmp_path / "best-0.gif"
    for name in ("../best-0.gif", "index.jsonl", "nothing.gif", "", "/etc/passwd"):
        assert video_path(tmp_path, name) is None
