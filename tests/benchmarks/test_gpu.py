"""The script for a GPU runs on a CPU: its stages, its budget, what a cut-off run keeps."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAGES = 19


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("gpu")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("index", range(STAGES))
def test_a_stage_finds_what_it_is_for(gpu, index):
    stages = gpu.plan(gpu.Place("cpu", is_small=True))
    assert len(stages) == STAGES
    assert len({stage.name for stage in stages}) == STAGES
    found = stages[index].work()
    assert json.loads(json.dumps(found)) == found
    name = stages[index].name
    if name.startswith("kernels"):
        assert found["problem"] == "no GPU"
        assert found["is_same"]
        assert not found["on"]["is_used"]
        assert found["on"]["ms_median"] > 0 < found["off"]["ms_median"]
    elif name.startswith("equality"):
        assert found["is_same"]
    elif name.startswith("update"):
        assert found["replayed_steps_per_s"] > 0
        assert found["tflop"] > 0
    elif name.startswith("learner"):
        assert found["live_over_staged"] > 0
        assert len(found["checkpoint_stall_ms"]) == 1
        assert (found["written_back"] > 0) == ("dreamerv3" in name)
    elif name.startswith("run"):
        assert found["status"] == "completed"
        assert found["train_steps"] > 0
    elif name == "deterministic":
        assert set(found.values()) == {"equal bits"}
        assert not torch.are_deterministic_algorithms_enabled()
    elif name == "ranks":
        assert found["broadcast"] == {"a": 1}


def test_all_stages_fit_into_eight_minutes_by_their_own_account(gpu):
    for is_small in (True, False):
        assert sum(s.seconds for s in gpu.plan(gpu.Place("cpu", is_small=is_small))) <= 440


def test_the_file_is_whole_after_each_stage_whatever_becomes_of_the_next(gpu, tmp_path):
    out = tmp_path / "deep" / "gpu.json"
    seen = []

    def look():
        seen.append(list(json.loads(out.read_text())["stages"]))
        return {"x": 1}

    def fail():
        raise RuntimeError("CUDA error")

    stages = [
        gpu.Stage("fails", 1, fail),
        gpu.Stage("looks", 1, look),
        gpu.Stage("is too long", 100, look),
    ]
    result = gpu.measure(gpu.Place("cpu"), stages, 50, out)
    assert seen == [["fails"]]
    assert json.loads(out.read_text()) == result
    found = result["stages"]
    assert found["fails"]["error"] == "RuntimeError: CUDA error"
    assert found["looks"]["x"] == 1
    assert "100 needed" in found["is too long"]["skipped"]


@pytest.mark.long
def test_the_whole_script_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    script = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--small"]
    subprocess.run([*script, "--out", str(out)], check=True, timeout=900)
    stages = json.loads(out.read_text())["stages"]
    assert len(stages) == STAGES
    assert not [name for name, found in stages.items() if {"error", "skipped"} & found.keys()]
