"""Everything that runs on CUDA, once, in under eight minutes.

    python benchmarks/gpu.py [--budget 440] [--device cuda] [--out FILE]
    python benchmarks/gpu.py --device cpu --small        every stage on a CPU, in minutes

Stages run in the order of worth. One that fails costs only itself, one for which no time is left is
skipped, and FILE (benchmarks/results/gpu.json) is replaced after each, so that a run that is cut
off keeps what it has.

To bring to a machine without network: this repository; torch 2.11 or newer with CUDA, numpy,
safetensors, tqdm and psutil where it has none; and the wheels of zstandard, zlib-ng, gymnasium,
farama-notifications and tyro for its Python. Ray and env packages are not needed. There:

    pip install --no-index --no-deps --target SITE *.whl
    PYTHONPATH=SITE:. python benchmarks/gpu.py --budget 440 --out "$OUT/gpu.json"
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_stages as stages
import torch
from context import context
from gpu_stages import EPISODIC, IMAGE, STACK, VECTOR, Place

from worldloom.core.devices import resolve_device
from worldloom.nn.rmsnorm import has_fused_norm
from worldloom_dist.learner.step import prepare_torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Stage:
    """One measurement.

    Attributes:
        name: In the result.
        seconds: It is skipped when less is left.
        work: Returns what was found.
    """

    name: str
    seconds: float
    work: Callable[[], dict[str, Any]]


def plan(place: Place) -> list[Stage]:
    """All stages in the order of worth. A failed capture may leave the process in any state, so it
    comes last.
    """
    dreamer, large, planner = (
        ("dreamerv3:ci", "dreamerv3:size1m", "tdmpc2:ci")
        if place.is_small
        else ("dreamerv3:size12m", "dreamerv3:size50m", "tdmpc2:5m")
    )
    cases = (
        ("dreamerv3:ci", VECTOR),
        ("dreamerv3:ci", IMAGE),
        ("tdmpc2:ci", VECTOR),
        ("tdmpc2:ci", EPISODIC),
        ("tdmpc2:ci", STACK),
    )
    equal = [
        Stage(f"equality {name} {env.name}", 8, lambda n=name, e=env: stages.equality(place, n, e))
        for name, env in cases
    ]
    return [
        Stage(f"kernels {dreamer}", 60, lambda: stages.kernels(place, dreamer, IMAGE)),
        *equal,
        Stage(f"update {dreamer} image", 35, lambda: stages.update(place, dreamer, IMAGE)),
        Stage(f"update {planner} vector", 25, lambda: stages.update(place, planner, VECTOR)),
        Stage(f"update {dreamer} vector", 30, lambda: stages.update(place, dreamer, VECTOR)),
        Stage(f"decision {planner} vector", 25, lambda: stages.decision(place, planner, VECTOR)),
        Stage(f"decision {dreamer} image", 20, lambda: stages.decision(place, dreamer, IMAGE)),
        Stage(f"learner {dreamer} image", 30, lambda: stages.learner(place, dreamer, IMAGE)),
        Stage(f"learner {planner} vector", 20, lambda: stages.learner(place, planner, VECTOR)),
        Stage(f"update {large} image", 45, lambda: stages.update(place, large, IMAGE)),
        Stage(f"precision {dreamer}", 15, lambda: stages.precision(place, dreamer, IMAGE)),
        Stage(f"run {planner}", 45, lambda: stages.run(place, planner)),
        Stage("ranks", 20, lambda: stages.ranks(place)),
        Stage("deterministic", 15, lambda: stages.deterministic(place)),
        Stage("fallback", 15, lambda: stages.fallback(place)),
    ]


def measure(place: Place, wanted: Sequence[Stage], budget: float, out: Path) -> dict[str, Any]:
    """Run stages while time is left; ``out`` is replaced after each."""
    began = time.monotonic()
    result: dict[str, Any] = {**about(place), "budget_s": budget, "stages": {}}
    for stage in wanted:
        started = time.monotonic()
        left = budget - (started - began)
        if left < stage.seconds:
            found: dict[str, Any] = {"skipped": f"{left:.0f} s left, {stage.seconds:.0f} needed"}
        else:
            try:
                found = stage.work()
            except Exception as error:  # the next stage runs all the same
                found = {
                    "error": f"{type(error).__name__}: {error}"[:500],
                    "trace": traceback.format_exc()[-1500:],
                }
        found["seconds"] = round(time.monotonic() - started, 1)
        result["stages"][stage.name] = found
        write(out, result)
        shown = {key: value for key, value in found.items() if key != "trace"}
        print(stage.name, json.dumps(shown, default=str)[:700], flush=True)
        clear(place)
    return result


def about(place: Place) -> dict[str, Any]:
    """Machine, versions and GPU."""
    try:
        known = context()
    except OSError:  # no git, or no /proc
        known = {}
    facts = {"python": platform.python_version(), "torch": torch.__version__, **known}
    if place.is_cuda:
        gpu = torch.cuda.get_device_properties(place.device)
        facts["gpu"] = {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_gb": gpu.total_memory / 1e9,
            "has_fused_norm": has_fused_norm(torch.device(place.device)),
        }
    return facts


def write(out: Path, result: dict[str, Any]) -> None:
    """Replace the file as a whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, default=str) + "\n")
    os.replace(temporary, out)


def clear(place: Place) -> None:
    """Give memory back between two stages."""
    gc.collect()
    if place.is_cuda:
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a broken context; the result so far is written
            print("the CUDA context is gone:", error, flush=True)


def main() -> None:
    """Read the options, measure, say where the result is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, cpu or auto")
    parser.add_argument("--budget", type=float, default=440.0, help="seconds for all stages")
    parser.add_argument("--small", action="store_true", help="small models, short stages")
    parser.add_argument("--out", type=Path, help="the result file")
    options = parser.parse_args()
    device = resolve_device(options.device)
    place = Place(device, is_small=options.small or device == "cpu")
    default = RESULTS if place.is_cuda else Path(tempfile.mkdtemp(prefix="worldloom-gpu-"))
    out = options.out or default / "gpu.json"
    prepare_torch(device, threads=2)
    measure(place, plan(place), options.budget, out)
    print("written to", out)


if __name__ == "__main__":
    main()
