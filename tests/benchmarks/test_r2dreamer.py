"""What ``benchmarks/r2dreamer.py`` measures: both agents, and what stands in place of what."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldloom.algorithms.r2dreamer import r2_cases
from worldloom.algorithms.registry import make_agent_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def r2dreamer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    module = importlib.import_module("r2dreamer")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    yield module
    torch.set_num_threads(threads)


def run_main(module: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/r2dreamer.py", *words])
    module.main()


@pytest.mark.parametrize("kind", ["vec", "img"])
def test_both_agents_and_their_parts_are_measured(
    r2dreamer: Any, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def small(name: str, settings: Any) -> Any:
        return make_agent_config(name, {**r2_cases.TINY, **settings})

    monkeypatch.setattr(r2dreamer, "make_agent_config", small)
    run_main(r2dreamer, monkeypatch, "speed", "--cases", f"{kind} ci", "--repeats", "2")
    case = json.loads((tmp_path / "r2dreamer_speed.json").read_text())["cases"][f"{kind} ci"]
    assert set(case["update"]) == {"dreamerv3", "r2dreamer"}
    assert case["cpu_of_dreamerv3"] > 0
    assert case["parts"]["decoder_share_of_update"] > 0


def test_learning_keeps_the_other_runs_of_the_file(
    r2dreamer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[list[str]] = []

    def trained(what: str, words: list[str]) -> dict[str, Any]:
        called.append(words)
        return {"wall_s": 1.0, "evaluations": [{"env_steps": 9, "median": 1.0, "returns": [1.0]}]}

    monkeypatch.setattr(r2dreamer, "trained", trained)
    run_main(r2dreamer, monkeypatch, "learn", "--tasks", "toy:pixel", "--seeds", "1")
    run_main(r2dreamer, monkeypatch, "learn", "--tasks", "gym:CartPole-v1", "--seeds", "0")
    runs = json.loads((tmp_path / "r2dreamer_learn.json").read_text())["runs"]
    assert [(r["task"], r["seed"]) for r in runs] == [("gym:CartPole-v1", 0), ("toy:pixel", 1)]
    assert called[0][called[0].index("--eval-every") + 1] == "1000", "a quarter of 4,000"
    assert (tmp_path / "r2dreamer_curves.png").exists()
