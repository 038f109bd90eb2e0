"""The corridor of ``benchmarks/mlp.py``: who is curious comes further."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def mlp(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("mlp")
    torch.set_num_threads(threads)


def test_the_reward_of_a_corridor_is_at_its_far_end(mlp: Any) -> None:
    corridor = mlp.Corridor(3)
    assert [corridor.step(action) for action in (0, 1, 1, 1, 1, 0)] == [0, 0, 0, 1, 1, 0]
    assert corridor.see().shape == (1, 1)


@pytest.mark.timeout(120)
def test_disagreement_explores_further_than_chance(mlp: Any) -> None:
    sizes = {"preset": "ci", "length": 24, "steps": 500}
    came = {
        bonus: [mlp.explored(bonus, seed, **sizes)["furthest"] for seed in (0, 1)]
        for bonus in (0.0, 1.0)
    }
    assert min(came[1.0]) > max(came[0.0]), came


def run_main(mlp: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/mlp.py", *words])
    mlp.main()


def test_learning_is_measured_in_parts_and_kept_after_every_run(
    mlp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, int]] = []

    def train(task: str, seed: int, env_steps: int) -> dict[str, Any]:
        if len(calls) == 3:
            raise SystemExit("the fourth run fails")
        calls.append((task, seed))
        points = [{"env_steps": env_steps, "median": float(len(calls)), "returns": [1.0]}]
        return {"task": task, "seed": seed, "wall_s": 1.0, "evaluations": points}

    def medians() -> dict[tuple[str, int], float]:
        runs = json.loads((tmp_path / "mlp_learn.json").read_text())["runs"]
        return {(r["task"], r["seed"]): r["evaluations"][0]["median"] for r in runs}

    monkeypatch.setattr(mlp, "RESULTS", tmp_path)
    monkeypatch.setattr(mlp, "train", train)
    pendulum, cart = mlp.TASKS
    run_main(mlp, monkeypatch, "learn", "--tasks", pendulum, "--seeds", "1")
    with pytest.raises(SystemExit, match="the fourth run fails"):
        run_main(mlp, monkeypatch, "learn", "--seeds", "1", "2")
    assert medians() == {(pendulum, 1): 2.0, (pendulum, 2): 3.0}, "the newest of each"
    calls.clear()
    run_main(mlp, monkeypatch, "learn", "--tasks", cart, "--seeds", "0")
    assert medians() == {(cart, 0): 1.0, (pendulum, 1): 2.0, (pendulum, 2): 3.0}
    calls[:] = calls[:0]
    with pytest.raises(SystemExit):
        run_main(mlp, monkeypatch, "learn")
    assert list(medians()) == [(pendulum, 0), (pendulum, 1), (pendulum, 2)], "all begins a new file"
    assert (tmp_path / "mlp_curves.png").exists()


def test_a_failed_run_says_its_output(mlp: Any) -> None:
    with pytest.raises(SystemExit, match=r"gym:NoSuch-v0 seed 3: (?s:.)*NoSuch"):
        mlp.train("gym:NoSuch-v0", 3, 40)


def test_no_step_of_the_env_follows_the_end_of_an_episode(
    mlp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = mlp.Corridor.step
    monkeypatch.setattr(mlp.Corridor, "step", lambda *args: steps.append(1) or step(*args))
    mlp.explored(0.0, 0, preset="ci", length=4, steps=9)
    assert len(steps) == 8, "nine observations have eight steps between them"
