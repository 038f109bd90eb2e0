"""``worldloom reproduce`` lists, runs, goes on, and refuses in one sentence."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import MissingDependencyError
from worldloom_dist import reproduce
from worldloom_dist.reproduce import TARGETS, Target, command, main
from worldloom_dist.reproduce.targets import flags
from worldloom_dist.run.cli import parse


@pytest.fixture
def tiny(monkeypatch):
    """A published result that takes a second."""
    words = iter(TINY["tdmpc2:ci"])
    settings = {word.removeprefix("--").replace("-", "_"): next(words) for word in words}
    settings |= {"env": "toy:point", "agent": "tdmpc2:ci", "env_steps": 80, "eval_episodes": 2}
    target = Target(
        name="toy/point", settings=settings, measured="evaluation", hours=0.01, differs="a toy"
    )
    monkeypatch.setattr(
        "worldloom_dist.reproduce.targets.TARGETS", {**TARGETS, target.name: target}
    )
    return target


def test_alone_it_lists_every_name_with_what_it_takes(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(TARGETS) + 1]] == list(TARGETS)
    assert "4.5 h" in next(line for line in lines if line.startswith("tdmpc2/cup-catch"))
    assert "needs a GPU" in next(line for line in lines if line.startswith("dreamerv3/pong"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tdmpc2/cup-cach"], "did you mean tdmpc2/cup-catch"),
        (["--smoke"], "name a published result"),
        (["--peer", "."], "name a published result"),
        (["--env-steps", "40000"], "name a published result"),
        (["tdmpc2/cup-catch", "--env-steps", "0"], "env_steps"),
        (
            ["tdmpc2/cup-catch", "--env-steps", "900", "--smoke"],
            "a smoke run has an end of its own",
        ),
        (["tdmpc2/cup-catch", "--seeds", "3-1"], "seeds must be numbers and ranges"),
        (["tdmpc2/cup-catch", "--parallel", "0"], "parallel must be"),
        (["tdmpc2/cup-catch", "--peer-python", "x"], "--peer-python is for --peer"),
        (["tdmpc2/cup-catch", "--peer", "nowhere"], "nowhere has no tdmpc2/tdmpc2.py; give a"),
        (["dreamerv3/walker-stand", "--peer", "."], "give a checkout of github.com/danijar"),
        (["gym/cartpole", "--peer", "."], "leave --peer out"),
    ],
)
def test_a_wrong_line_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(capfd, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert main(["tdmpc2/cup-catch", "--output", str(tmp_path / "file/below")]) == 2
    out, error = capfd.readouterr()
    assert not out
    assert "cannot be made" in error
    assert error.count("\n") == 1


def test_a_missing_plot_package_is_said_before_anything_runs(capsys, tmp_path, monkeypatch):
    def missing(path, **_):
        raise MissingDependencyError("a plot", "matplotlib", "viz")

    monkeypatch.setattr(command, "check_drawing", missing)
    monkeypatch.chdir(tmp_path)
    assert main(["tdmpc2/cup-catch"]) == 2
    assert "matplotlib" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_result_is_run_written_and_left_as_it_is(tiny, tmp_path, capfd):
    words = [tiny.name, "--seeds", "1-2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "differs  a toy" in out
    records = read(tmp_path / "out/toy-point.jsonl")
    head = records[0]
    assert (head["kind"], head["name"], head["is_smoke"]) == ("result", "toy/point", False)
    runs = [r for r in records if r["kind"] == "run"]
    assert [(r["by"], r["seed"], r["status"]) for r in runs] == [
        ("worldloom", 1, "completed"),
        ("worldloom", 2, "completed"),
    ]
    assert all(r["env_steps"] >= 80 and r["precision"] == "float32" for r in runs)
    assert {r["kind"] for r in records} == {"result", "run", "episode", "eval", "comparison"}
    ours = [r["worldloom"] for r in records if r["kind"] == "comparison"][-1]
    assert set(ours["seeds"]) == {"1", "2"}
    assert (tmp_path / "out/toy-point.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "out/toy-point-seed1/command.txt").read_text()
    assert main(words) == 0
    assert "seed 1: complete already" in capfd.readouterr().out
    assert (tmp_path / "out/toy-point-seed1/command.txt").read_text() == before
    assert read(tmp_path / "out/toy-point.jsonl") == records
    assert main([*words, "--seeds", "2"]) == 0
    assert read(tmp_path / "out/toy-point.jsonl") == records, "no seed is lost"


def test_a_precision_that_was_chosen_is_kept(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WORLDLOOM_CACHE_DIR", str(tmp_path / "cache"))
    words = [tiny.name, "--output", str(tmp_path / "out")]
    assert main([*words, "--precision", "bfloat16"]) == 0
    capfd.readouterr()
    assert main([*words, "--precision", "auto"]) == 0
    assert "complete already" in capfd.readouterr().out
    (run,) = [r for r in read(tmp_path / "out/toy-point.jsonl") if r["kind"] == "run"]
    assert run["precision"] == "bfloat16"
    assert main([*words, "--precision", "float32"]) == 2
    assert "agent.precision bfloat16 -> float32" in capfd.readouterr().err


def test_another_end_is_taken_and_is_that_of_the_result(tiny, tmp_path, capfd):
    words = [tiny.name, "--output", str(tmp_path / "out"), "--env-steps", "60"]
    assert main(words) == 0
    assert "60 env steps each" in capfd.readouterr().out
    records = read(tmp_path / "out/toy-point.jsonl")
    assert records[0]["env_steps"] == 60
    (run,) = [r for r in records if r["kind"] == "run"]
    assert (run["status"], run["env_steps"]) == ("completed", 60)
    assert main(words[:-2]) == 2
    assert "env_steps 60 -> 80" in capfd.readouterr().err


def test_a_folder_with_another_end_is_refused(tiny, tmp_path, capfd):
    folder = tmp_path / "out/toy-point-seed1"
    folder.mkdir(parents=True)
    other = parse(flags({**tiny.settings, "env_steps": 70}))
    run = other.to_dict()
    (folder / "config.json").write_text(json.dumps({"run": run}))
    assert main([tiny.name, "--output", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert "holds a run of other settings (env_steps 70 -> 80); name another folder" in error
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_the_command_is_the_one_that_benchmarks_have(monkeypatch, capsys):
    script = Path(__file__).parents[3] / "benchmarks/reproduce.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script))
    assert left.value.code == 0
    assert "tdmpc2/cup-catch" in capsys.readouterr().out
    assert reproduce.main is main


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_every_name_runs_small(name, tmp_path, capfd):
    assert main([name, "--smoke", "--output", str(tmp_path)]) == 0
    assert "says nothing of the result" in capfd.readouterr().out
    records = read(tmp_path / f"smoke/{name.replace('/', '-')}.jsonl")
    assert records[0]["is_smoke"]
    assert [r["status"] for r in records if r["kind"] == "run"] == ["completed"]
    assert (tmp_path / f"smoke/{name.replace('/', '-')}.png").stat().st_size > 0
