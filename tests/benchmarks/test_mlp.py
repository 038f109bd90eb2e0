"""The corridor of ``benchmarks/mlp.py``: who is curious comes further."""

import importlib
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
