"""The last lines of a run name its result and commands that go on with it."""

import json
import shlex
import sys

import pytest

from worldloom.commands import RUN_COMMANDS
from worldloom_dist.run.cli import parse
from worldloom_dist.run.closing import closing_lines, program
from worldloom_dist.run.folder import RunFolder

EVAL = {"return_mean": -171.125, "return_std": 102.2, "episodes": 20}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my run"
    (path / "checkpoints" / "best").mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps({"eval": EVAL}))
    manifest = {"facts": {"score": -150.25}}
    (path / "checkpoints" / "best" / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment with the command in it, and its bin folder."""
    binaries = tmp_path / "project" / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "worldloom"):
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return binaries


def test_result_best_checkpoint_and_commands_are_named(folder, installed, monkeypatch):
    monkeypatch.setenv("PATH", f"{installed}:/usr/bin:/bin")
    lines = closing_lines(parse(["--env-steps", "3000"]), folder, RunFolder(folder))
    assert lines[0] == "return   -171.1 +- 102.2 over 20 episodes"
    assert lines[1] == f"best     {folder}/checkpoints/best: return -150.2"
    words = [shlex.split(line[9:]) for line in lines[2:]]
    assert [typed[:2] for typed in words] == [
        ["worldloom", name] for name in ("evaluate", "enjoy", "plot", "report", "train")
    ]
    assert all(typed[1] in RUN_COMMANDS and str(folder) in typed for typed in words)
    assert words[-1][2:] == ["--resume", str(folder), "--env-steps", "6000"]


def test_a_command_that_the_shell_does_not_find_is_named_by_its_path(installed, monkeypatch):
    monkeypatch.chdir(installed.parents[1])
    assert program() == ".venv/bin/worldloom"
    monkeypatch.chdir("/")
    assert program() == str(installed / "worldloom")
    other = installed.parents[1] / "other"
    other.mkdir()
    (other / "worldloom").symlink_to(installed / "worldloom")
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.chdir(other)
    assert program() == str(installed / "worldloom"), "another installation is not this one"


def test_without_the_console_script_the_module_is_named(installed, monkeypatch):
    (installed / "worldloom").unlink()
    monkeypatch.chdir(installed.parents[1])
    assert program() == ".venv/bin/python -m worldloom"
    monkeypatch.setenv("PATH", str(installed))
    assert program() == "python -m worldloom"


def test_an_offline_run_goes_on_by_updates_and_has_no_env_to_play_in(folder):
    (folder / "summary.json").write_text(json.dumps({"eval": None}))
    config = parse("--env none --replay.load x.npz --train-steps 50".split())
    lines = closing_lines(config, folder, RunFolder(folder))
    assert lines[-1].endswith("--train-steps 100")
    assert not any(word in line for line in lines for word in ("evaluate", "enjoy", "+-"))


def test_the_film_of_the_last_evaluation_is_named(folder):
    evaluation = {**EVAL, "videos": ["eval-000005000-0.mp4", "eval-000005000-1.mp4"]}
    (folder / "summary.json").write_text(json.dumps({"eval": evaluation}))
    lines = closing_lines(parse([]), folder, RunFolder(folder))
    assert lines[2] == f"film     {folder}/videos/eval-000005000-0.mp4"
