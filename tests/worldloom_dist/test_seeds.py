"""Several seeds of one run: ordinary run folders, one last screen."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.waiting import wait_until
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist import launch
from worldloom_dist.run.cli import parse
from worldloom_dist.seeds import SeedRuns, parse_seeds, split_words

TINY_RUN = [*TINY["tdmpc2:ci"], "--metrics-port", "0", "--env-steps", "60", "--eval-episodes", "1"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("1-5", [1, 2, 3, 4, 5]), ("3", [3]), ("1, 7-8,2", [1, 7, 8, 2])]
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5-1", "1-", "-1", "1,,2", "1,1", "0-5000", "1.5"])
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(ConfigurationError, match="seeds"):
        parse_seeds(text)


def test_flags_of_the_sweep_are_taken_from_the_line():
    words, given = split_words(["--seeds=1-2", "--workers", "2", "--parallel", "2"])
    assert words == ["--workers", "2"]
    assert given == {"seeds": "1-2", "parallel": "2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--parallel 2", "name them with --seeds 1-5"),
        ("--seeds", "expected a value after it"),
        ("--seeds 1-2 --seed 3", "leave --seed out"),
        ("--seeds 1-2 --parallel many", "takes an integer"),
        ("--seeds 1-2 --parallel 0", "parallel must be"),
        ("--seeds 1-2 --wokers 3", "did you mean --workers"),
        ("--seeds 1-2 --parallel 2 --metrics-port 9000", "cannot share port 9000"),
        ("--seed 1-2", "several seeds are --seeds 1-5"),
        ("--seeds 1-2 --resume runs/x", "runs/x holds no run"),
        ("--seeds 1-2 --run-dir /", "it has none; name another folder"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(words, message, capsys):
    assert launch.main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_each_seed_is_a_run_and_an_interrupted_sweep_goes_on(tmp_path, capfd):
    words = [*TINY_RUN, "--run-dir", str(tmp_path / "my run"), "--seeds", "1-3"]
    assert launch.main([*words, "--parallel", "2"]) == 0
    folders = [tmp_path / f"my run-seed{seed}" for seed in (1, 2, 3)]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [summary["status"] for summary in summaries] == ["completed"] * 3
    configs = [json.loads((folder / "config.json").read_text())["run"] for folder in folders]
    assert [config["seed"] for config in configs] == [1, 2, 3]
    lines = capfd.readouterr().out.splitlines()
    returns = [summary["eval"]["return_mean"] for summary in summaries]
    (result,) = [line for line in lines if line.startswith("return ")]
    assert result.split()[1] == f"{sum(returns) / 3:.1f}"
    assert "over 3 seeds" in result
    assert any(" plot --table " in line for line in lines)
    assert launch.main(words) == 2
    assert "--if-exists resume" in capfd.readouterr().err
    (folders[1] / "summary.json").write_text(json.dumps({**summaries[1], "status": "stopped"}))
    made = [(folder / "command.txt").read_text().count("\n") for folder in folders]
    assert launch.main([*words, "--if-exists", "resume"]) == 0
    again = [(folder / "command.txt").read_text().count("\n") for folder in folders]
    assert again == [made[0], made[1] + 1, made[2]]
    assert capfd.readouterr().out.count("complete already") == 2


def test_seeds_share_no_place_of_checkpoints(tmp_path):
    place = tmp_path / "kept"
    words = [*TINY_RUN, "--learner.checkpoints", str(place), "--run-dir", str(tmp_path / "run")]
    assert launch.main([*words, "--seeds", "1-2"]) == 0
    assert sorted(folder.name for folder in place.iterdir()) == ["seed1", "seed2"]
    for folder in place.iterdir():
        assert any(folder.glob("step-*"))
    assert launch.main([*words, "--seeds", "1-2", "--if-exists", "resume"]) == 0


def test_a_seed_that_fails_is_told_and_the_others_run(tmp_path):
    out = io.StringIO()
    root = tmp_path / "run"
    words = [*TINY_RUN, "--run-dir", str(root), "--if-exists", "resume"]
    broken = tmp_path / "run-seed1"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    runs = SeedRuns(parse(words), words, [1, 2], parallel=2, out=out)
    assert runs.run() == 2
    assert "seed 1: failed (error: " in out.getvalue()
    assert "the same command with --if-exists resume" in out.getvalue()


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Takes what a run does instead of training, as a shell script."""

    def behave(script):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return behave


def test_a_seed_that_complains_at_length_is_not_stopped_by_it(tmp_path, child):
    child("head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; echo 'error: at last' >&2; exit 1")
    out = io.StringIO()
    words = [*TINY_RUN, "--run-dir", str(tmp_path / "run")]
    assert SeedRuns(parse(words), words, [1, 2], parallel=2, out=out).run() == 1
    for seed in (1, 2):
        assert f"seed {seed}: failed (error: at last)" in out.getvalue()


def test_a_seed_that_is_stopped_before_it_listens_has_not_failed(tmp_path, child):
    child('case "$*" in *"--seed 1 "*) kill -TERM $PPID;; esac; exec sleep 60')
    out = io.StringIO()
    words = [*TINY_RUN, "--run-dir", str(tmp_path / "run")]
    assert SeedRuns(parse(words), words, [1, 2], parallel=2, out=out).run() == 0
    assert "seed 1: stopped\n" in out.getvalue()
    assert " plot " not in out.getvalue(), "there is nothing to see yet"


def test_runs_whose_service_is_stopped_as_a_whole_are_told_twice_and_leave_with_a_checkpoint(
    tmp_path,
):
    words = [*TINY_RUN, "--env-steps", "1000000", "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "worldloom_dist.launch", *words, "--seeds", "1-2"]
    summary = tmp_path / "run-seed1" / "summary.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as sweep:
        try:
            wait_until(lambda: summary.exists() and _trained(summary) > 0, 60)
            (run,) = psutil.Process(sweep.pid).children()
            for process in (run, sweep):  # as a service manager does
                process.send_signal(signal.SIGTERM)
            text = sweep.communicate(timeout=60)[0].decode()
        finally:
            sweep.kill()
    assert sweep.returncode == 0, text
    found = json.loads(summary.read_text())
    assert (found["status"], found["error"]) == ("stopped", None)


def _trained(summary):
    return json.loads(summary.read_text())["train_steps"]


@pytest.mark.parametrize("has_others", [False, True])
def test_the_advice_of_a_sweep_names_its_own_runs_that_have_something_to_show(
    tmp_path, child, has_others
):
    root = tmp_path / "my run"
    child('for last; do :; done; mkdir -p "$last"; touch "$last/metrics.jsonl"')
    if has_others:
        (tmp_path / "my run-seed77").mkdir()
    out = io.StringIO()
    words = [*TINY_RUN, "--run-dir", str(root)]
    SeedRuns(parse(words), words, [1, 2, 3, 4], out=out).run()
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("plot ")]
    names = [f"'{root}-seed{seed}'" for seed in (1, 2, 3, 4)]
    expected = " ".join(names) if has_others else f"'{root}'-seed*"
    assert line.partition(" plot ")[2] == expected


@pytest.mark.parametrize("text", [".", "..", "sub/.."])
def test_seeds_lie_beside_a_folder_that_a_path_names_by_dots(text, tmp_path, monkeypatch, child):
    child("exit 0")
    (tmp_path / "outer" / "inner" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    words = [*TINY_RUN, "--run-dir", text]
    out = io.StringIO()
    SeedRuns(parse(words), words, [1], out=out).run()
    beside = tmp_path / ("outer-seed1" if text == ".." else "outer/inner-seed1")
    assert out.getvalue().startswith(f"seed 1: {beside}\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 75)])
def test_a_stopped_sweep_leaves_runs_that_go_on(tmp_path, number, status):
    words = [*TINY_RUN, "--env-steps", "1000000", "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "worldloom_dist.launch", *words, "--seeds", "1-2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    summary = tmp_path / "run-seed1" / "summary.json"
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if summary.exists() and json.loads(summary.read_text())["train_steps"] > 0:
                break
            time.sleep(0.2)
        os.kill(process.pid, number)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == status, text
    assert json.loads(summary.read_text())["status"] == "stopped"
    assert not (tmp_path / "run-seed2").exists()
    assert "go on    the same command with --if-exists resume" in text
