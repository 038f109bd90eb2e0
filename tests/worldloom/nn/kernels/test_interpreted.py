"""The kernels compute what their definitions say: run on the CPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldloom.nn.kernels.ops import SCHEMAS

ROOT = Path(__file__).parents[4]
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="needs triton, which torch's wheel for CPUs lacks: "
        "pip install -c constraints.txt triton",
    ),
    pytest.mark.timeout(600),
]
BOUNDS = {"float32": 2e-6, "bfloat16": 1.5e-2}
"""bfloat16 keeps 8 bits; the interpreter cuts where a GPU rounds."""
SCAN_BOUNDS = {"float32": 1e-5, "bfloat16": 6e-2}


def run(program: str, **env: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.worldloom.nn.kernels.{program}"],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    return run("interpreted", TRITON_INTERPRET="1")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_kernel_computes_what_its_definition_says(differences, name, dtype):
    found = {key: value for key, value in differences.items() if f"{name} {dtype}" in key}
    assert len(found) >= 4
    assert max(found.values()) <= BOUNDS[dtype], found


@pytest.mark.parametrize("dtype", SCAN_BOUNDS)
def test_the_scan_has_the_values_and_gradients_of_the_plain_one(differences, dtype):
    assert differences[f"scan {dtype} whole"] <= SCAN_BOUNDS[dtype]


@pytest.mark.long
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    sizes = run("compiled", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert {name.split()[0] for name in sizes} == {f"sm_{number}" for number in (80, 90)}
    assert len({name.split()[1] for name in sizes}) == len(SCHEMAS)
    assert all(size > 1000 for size in sizes.values())
