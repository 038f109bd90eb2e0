"""A run of several tasks goes on, with the same list or with a longer one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.worldloom_dist import small_runs
from tests.worldloom_dist.local_runs import (
    assert_equal_trees,
    completed,
    newest_state,
    restored_threads,
    start,
)
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.envs.consent import UntrustedEnvError
from worldloom.training.checkpoints import CheckpointStore
from worldloom.training.saved_agents import SavedAgent
from worldloom_dist.evaluate import evaluate
from worldloom_dist.launch import main as launch
from worldloom_dist.launch import prepare
from worldloom_dist.replay.history import EpisodeHistory
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import resolve_again

TWO = "toy:point,toy:counting"
THREE = f"{TWO},gym:Pendulum-v1"
WORDS = [*TINY["tdmpc2:ci"], "--env", TWO, "--workers", "2"]
SCORED = ["--eval-episodes", "1", "--eval-every", "0"]


_threads = pytest.fixture(autouse=True)(restored_threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    return completed(folder, *WORDS, *SCORED, "--env-steps", "90")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, workers: str) -> None:
    words = ["--env", TWO, "--workers", workers, "--env-steps", "180"]
    assert small_runs.start(tmp_path / "whole", *words).run() == "completed"
    broken = small_runs.start(tmp_path / "broken", *words)
    broken.begin()
    while broken.report.env_steps < 150:
        broken.turn()
    broken.runtime.replay.close()  # as death does
    assert small_runs.start(tmp_path / "broken", *words).run() == "completed"
    whole, again = (newest_state(tmp_path / name) for name in ("whole", "broken"))
    assert_equal_trees(whole["learner"], again["learner"])
    assert_equal_trees(whole["workers"], again["workers"])


def test_a_list_that_grows_keeps_what_is_known(folder: Path) -> None:
    old = newest_state(folder)["learner"]["agent"]
    best = CheckpointStore(folder / "checkpoints").best_score()
    number = evaluate(folder, tasks=["point"])["returns"]
    words = ["--resume", str(folder), "--env", THREE, "--env-steps", "90"]
    plan = resolve_again(parse(words), RunFolder(folder))
    joined = [task.joined for task in plan.env_spec.tasks]
    at = json.loads((folder / "summary.json").read_text())["env_steps"]
    assert joined == [0, 0, at]
    assert plan.spec.prefill_agent_steps == 12
    again = ["--resume", str(folder), "--env", THREE, "--env-steps", "240"]
    assert launch(again) == 0
    state = newest_state(folder)["learner"]["agent"]
    assert state["model"]["task_emb"].shape[0] == 3
    assert state["model"]["task_emb"].shape[1] == old["model"]["task_emb"].shape[1]
    played = [int(rows["obs/task"][0]) for rows in EpisodeHistory(folder / "replay").episodes()]
    assert 2 in played
    assert verify_run(folder).problems == []
    config = json.loads((folder / "config.json").read_text())
    assert [task["joined"] for task in config["env"]["tasks"]] == [0, 0, at]
    last = json.loads((folder / "summary.json").read_text())["eval"]
    assert list(last["tasks"]) == ["point", "counting", "Pendulum-v1"]
    newest_best = json.loads((folder / "checkpoints/best/manifest.json").read_text())["facts"]
    assert [task["name"] for task in newest_best["env"]["tasks"]][-1] == "Pendulum-v1", (
        "scores over other tasks do not compare"
    )
    assert newest_best["score"] < best
    assert number  # evaluated before; checkpoints of then are evaluated below
    assert launch(["--resume", str(folder), "--env-steps", "270"]) == 0


def test_a_checkpoint_from_before_evaluates_to_its_old_number(folder: Path) -> None:
    name = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))[-1]
    before = evaluate(folder, tasks=["point"], checkpoint=name)["returns"]
    again = ["--resume", str(folder), "--env", THREE, "--env-steps", "120"]
    assert launch([*again, "--learner.keep-checkpoints", "9"]) == 0
    assert evaluate(folder, tasks=["point"], checkpoint=name)["returns"] == before


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("toy:counting,toy:point", "'point' is moved, and tasks can only be added at the end"),
        ("gym:Pendulum-v1,toy:point,toy:counting", "'point' is moved"),
        ("toy:point,toy:mirror", "'counting' is missing"),
        ("toy:point", "env: the run was made with"),
        (f"{TWO},gym:CartPole-v1", "'CartPole-v1' (gym:CartPole-v1) has the discrete action"),
    ],
)
def test_another_change_of_the_list_is_one_sentence_and_changes_nothing(
    env: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert launch(["--resume", str(folder), "--env", env]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(lines) == 1
    assert contents(folder) == before


def test_one_task_cannot_become_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "60"]
    assert start(folder, *words).run() == "completed"
    assert launch(["--resume", str(folder), "--env", TWO]) == 2
    assert "env.env: the run was made with 'toy:point'" in capsys.readouterr().err


def test_a_changed_setting_of_a_task_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tasks.toml"
    text = '[a]\nenv = "toy:point"\n[b]\nenv = "toy:counting"\n'
    file.write_text(text, encoding="utf-8")
    folder = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{file}", "--env-steps", "60"]
    assert start(folder, *words).run() == "completed"
    file.write_text(text.replace("[b]", "time_limit = 9\n[b]"), encoding="utf-8")
    assert launch(["--resume", str(folder), "--env", f"mt:{file}"]) == 2
    assert "'a' is toy:point with" in capsys.readouterr().err
    file.write_text(text + '[c]\nenv = "toy:mirror"\n', encoding="utf-8")
    plan = prepare(parse(["--resume", str(folder), "--env", f"mt:{file}", "--env-steps", "90"]))[0]
    assert [task.joined > 0 for task in plan.env_spec.tasks] == [False, False, True]


def test_a_task_that_is_larger_than_the_rows_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dm_control")
    file = tmp_path / "tasks.toml"
    tables = [("point", "toy:point"), ("counting", "toy:counting"), ("walk", "dmc:walker-walk")]
    lines = [f'[{name}]\nenv = "{env}"\naction_repeat = 1\n' for name, env in tables]
    file.write_text("".join(lines), encoding="utf-8")
    before = contents(folder)
    assert launch(["--resume", str(folder), "--env", f"mt:{file}"]) == 2
    said = "env.tasks: 'walk' has 24 numbers in obs, and the run's rows have 4; leave it out"
    assert said in capsys.readouterr().err
    assert contents(folder) == before


def test_best_is_of_the_present_ranges_of_the_scores(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    text = '[a]\nenv = "toy:point"\nscore = [{}]\n[b]\nenv = "toy:counting"\nscore = [0, 9]\n'
    folder = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{file}", *SCORED, "--workers", "2"]
    file.write_text(text.format("-1000, -999"), encoding="utf-8")
    assert start(folder, *words, "--env-steps", "60").run() == "completed"
    best = folder / "checkpoints/best/manifest.json"
    first = json.loads(best.read_text())["facts"]["score"]
    file.write_text(text.format("0, 1e9"), encoding="utf-8")
    again = ["--resume", str(folder), "--env", f"mt:{file}", "--env-steps", "90"]
    assert launch(again) == 0
    facts = json.loads(best.read_text())["facts"]
    assert facts["env_steps"] >= 90, "the score of then was on another scale"
    assert facts["score"] < first
    assert facts["env"]["tasks"][0]["score"] == [0.0, 1e9]


def test_ones_own_run_whose_list_grows_stays_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    envs = "tests.worldloom_dist.foreign_envs:Ordinary"
    folder = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], *SCORED, "--workers", "1", "--learner.keep-checkpoints", "9"]
    assert start(folder, *words, "--env", TWO, "--env-steps", "60").run() == "completed"
    old = sorted(folder.glob("checkpoints/step-*"))[-1]
    assert launch(["--resume", str(folder), "--env", f"{TWO},{envs}", "--env-steps", "90"]) == 0
    evaluate(folder, tasks=["point"])
    middle = sorted(folder.glob("checkpoints/step-*"))[-1]
    further = f"{TWO},{envs},gym:Pendulum-v1"
    assert launch(["--resume", str(folder), "--env", further, "--env-steps", "120"]) == 0
    evaluate(folder, tasks=["point"])
    for checkpoint in (folder, middle, old):
        SavedAgent.read(checkpoint).check_code(trust_env=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    with pytest.raises(UntrustedEnvError):
        evaluate(folder, tasks=["point"])
    more = ["--env", f"{further},toy:mirror", "--env-steps", "150"]
    assert launch(["--resume", str(folder), *more]) == 0
    with pytest.raises(UntrustedEnvError):
        evaluate(folder, tasks=["point"])
