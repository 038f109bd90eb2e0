"""How fast TD-MPC2 trains and plans, and what part of the machine's arithmetic that is.

    python benchmarks/tdmpc2.py --threads 1 2 --presets 1m 5m --reference ~/tdmpc2
    python benchmarks/tdmpc2.py --threads 1 --presets 1m --envs 1 --compile
    python benchmarks/tdmpc2.py --threads 1 --presets 5m --envs 1 --precision float32 bfloat16 \
        --out benchmarks/results/tdmpc2_bf16.json

Prints a table and writes JSON to ``benchmarks/results/``. Every number is given as wall and as CPU
time, because only the latter means something on a loaded machine. With ``--reference`` (a checkout
of github.com/nicklashansen/tdmpc2, whose dependencies must be importable) the authors' code runs in
turns with ours, on the CPU: device names are replaced in a temporary copy. With ``--compile`` the
losses of the update and the parts of one planning iteration go through ``torch.compile``, in turns
with eager; ``first_call_s`` is what compiling took.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.algorithms.tdmpc2 import planner
from worldloom.algorithms.tdmpc2 import update as updating
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec

OBS_DIM = 24
ACTION_DIM = 6
ENV = EnvSpec(
    name="dmc:walker-walk",
    obs={"obs": ArraySpec((OBS_DIM,))},
    action={"action": ArraySpec((ACTION_DIM,))},
    episode_limit=500,
    action_repeat=2,
    may_terminate=False,
)
RESULTS = Path(__file__).resolve().parent / "results"


def measure(
    functions: dict[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Milliseconds per call; the functions take turns, so that a change of the machine's load meets
    all of them.
    """
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            used = time.process_time()
            function()
            wall[name].append((time.perf_counter() - started) * 1e3)
            cpu[name].append((time.process_time() - used) * 1e3)
    return {
        name: {
            "wall_ms_min": min(wall[name]),
            "wall_ms_median": statistics.median(wall[name]),
            "cpu_ms_min": min(cpu[name]),
            "cpu_ms_median": statistics.median(cpu[name]),
        }
        for name in functions
    }


def peak_flops(precision: str) -> float:
    """Floating-point operations per CPU second of a large matrix product on the threads in use."""
    a = torch.randn(2048, 2048).to(getattr(torch, precision))
    result = measure({"product": lambda: a @ a}, 5)
    return 2 * 2048**3 / (result["product"]["cpu_ms_min"] / 1e3)


def random_batch(rng: np.random.Generator, size: int, rows: int) -> SequenceBatch:
    """Windows of noise, as tensors."""
    no = np.zeros((size, rows), bool)
    columns = {
        "obs": rng.normal(size=(size, rows, OBS_DIM)).astype(np.float32),
        "action": rng.uniform(-1, 1, (size, rows, ACTION_DIM)).astype(np.float32),
        "reward": rng.normal(size=(size, rows)).astype(np.float32),
    }
    flags = {"is_first": no, "terminated": no, "truncated": no}
    return SequenceBatch.from_columns(columns | flags).map(torch.tensor)


def ours(
    preset: str, envs: list[int], device: str, precision: str
) -> dict[str, Callable[[], object]]:
    """Calls to time: one update, and one ``act`` per number of envs."""
    config = make_agent_config(f"tdmpc2:{preset}", {"precision": precision})
    agent = make_agent(config, ENV, device=device)
    rng = np.random.default_rng(0)
    sampling = agent.spec.sampling
    batch = random_batch(rng, sampling.batch_size, sampling.window_rows)

    def update() -> object:
        return float(agent.train_step(batch).metrics["total_loss"])

    def act(count: int) -> Callable[[], object]:
        obs = {"obs": rng.normal(size=(count, OBS_DIM)).astype(np.float32)}
        carry = agent.initial_carry(count)
        return lambda: agent.act(obs, carry, np.zeros(count, bool), explore=True)

    return {"update": update} | {f"plan_{count}": act(count) for count in envs}


def compiled(
    calls: dict[str, Callable[[], object]],
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The given calls with their arithmetic compiled, and the seconds that the first of
    each took.
    """
    search = planner._Search
    homes = [
        (updating, "model_loss"),
        (updating, "policy_loss"),
        (search, "rollout"),
        (search, "value"),
        (planner, "_refit"),
    ]
    fast = [(home, name, torch.compile(getattr(home, name))) for home, name in homes]

    def wrap(call: Callable[[], object]) -> Callable[[], object]:
        def run_compiled() -> object:
            with contextlib.ExitStack() as stack:
                for home, name, function in fast:
                    stack.enter_context(patch.object(home, name, function))
                return call()

        return run_compiled

    result = {f"compiled_{name}": wrap(call) for name, call in calls.items()}
    first = {}
    for name, call in result.items():
        started = time.perf_counter()
        call()
        first[name] = time.perf_counter() - started
        print(f"{name}: first call {first[name]:.0f} s", flush=True)
    return result, first


def reference(checkout: Path, preset: str) -> dict[str, Callable[[], object]]:
    """The same calls on the authors' code."""
    folder = Path(tempfile.mkdtemp()) / "tdmpc2"
    shutil.copytree(checkout / "tdmpc2", folder)
    for file in folder.rglob("*.py"):
        file.write_text(
            file.read_text().replace("cuda:0", "cpu").replace("capturable=True", "capturable=False")
        )
    for name in [
        n for n in sys.modules if n == "common" or n.startswith("common.") or n == "tdmpc2"
    ]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    from common import MODEL_SIZE  # type: ignore[import-not-found]
    from tdmpc2 import TDMPC2  # type: ignore[import-not-found]

    settings: dict[str, Any] = {}
    for line in (folder / "config.yaml").read_text().splitlines():
        found = re.match(r"^(\w+): ([^#?]+)$", line)
        if found:
            settings[found[1]] = _scalar(found[2].strip())
    settings |= MODEL_SIZE[int(preset.removesuffix("m"))]
    settings |= {
        "obs_shape": {"state": (OBS_DIM,)},
        "action_dim": ACTION_DIM,
        "episode_length": 500,
        "multitask": False,
    }
    settings |= {
        "task_dim": 0,
        "compile": False,
        "obs": "state",
        "bin_size": 20 / (settings["num_bins"] - 1),
        "tasks": ["x"],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        agent = TDMPC2(SimpleNamespace(**settings, get=settings.get))
    sys.path.remove(str(folder))
    size = settings["batch_size"]
    horizon = settings["horizon"]
    batch = (
        torch.randn(horizon + 1, size, OBS_DIM),
        torch.rand(horizon, size, ACTION_DIM) * 2 - 1,
        torch.randn(horizon, size, 1),
        torch.zeros(horizon, size, 1),
        None,
    )
    buffer = SimpleNamespace(sample=lambda: batch)
    obs = torch.randn(OBS_DIM)
    return {
        "reference_update": lambda: agent.update(buffer),
        "reference_plan_1": lambda: agent.act(obs, t0=False),
    }


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if re.search(r"[.e]", text) else int(text.replace("_", ""))
    except ValueError:
        return text


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def hot_spots(function: Callable[[], object], rows: int = 12) -> dict[str, float]:
    """Operators that take most of the time of one call: name -> share of all CPU time."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    events = recorded.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    ranked = sorted(events, key=lambda e: -e.self_cpu_time_total)[:rows]
    return {e.key: round(e.self_cpu_time_total / total, 4) for e in ranked}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All combinations of threads and presets."""
    entries = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for preset, precision in itertools.product(options.presets, options.precision):
            peak = peak_flops(precision)
            calls = ours(preset, options.envs, options.device, precision)
            paired = {name: calls[name] for name in ("update", "plan_1") if name in calls}
            if options.reference and preset != "ci":
                paired |= reference(options.reference, preset)
            first_call: dict[str, float] = {}
            if options.compile:
                more, first_call = compiled(
                    {name: calls[name] for name in ("update", "plan_1") if name in calls}
                )
                paired |= more
            times = measure(paired, options.repeats)
            for name, seconds in first_call.items():
                times[name]["first_call_s"] = seconds
            for name in calls.keys() - paired.keys():
                times |= measure({name: calls[name]}, 2)
            entry: dict[str, Any] = {
                "preset": preset,
                "precision": precision,
                "threads": threads,
                "peak_gflop_per_cpu_s": peak / 1e9,
                "times": times,
            }
            for name, function in calls.items():
                flops = count_flops(function)
                fraction = flops / (times[name]["cpu_ms_median"] / 1e3) / peak
                per_s = 1e3 / times[name]["wall_ms_median"]
                times[name] |= {"per_s": per_s, "gflop": flops / 1e9, "fraction_of_peak": fraction}
            entry["hot_spots"] = {name: hot_spots(calls[name]) for name in ("update", "plan_1")}
            for name in ("update", "plan_1"):
                if f"reference_{name}" in times:
                    theirs = times[f"reference_{name}"]
                    mine = times[name]
                    entry[f"speedup_{name}"] = {
                        k: theirs[k] / mine[k] for k in ("wall_ms_median", "cpu_ms_median")
                    }
                if f"compiled_{name}" in times:
                    eager = times[name]
                    fast = times[f"compiled_{name}"]
                    entry[f"compile_speedup_{name}"] = {
                        k: eager[k] / fast[k] for k in ("wall_ms_median", "cpu_ms_median")
                    }
            entries.append(entry)
            show(entry)
    return entries


def show(entry: dict[str, Any]) -> None:
    """Print one entry as a small table."""
    print(
        f"\n{entry['preset']}, {entry['precision']}, {entry['threads']} thread(s), peak "
        f"{entry['peak_gflop_per_cpu_s']:.0f} GFLOP per CPU second"
    )
    for name, t in sorted(entry["times"].items()):
        extra = f"  {t['fraction_of_peak']:5.0%} of peak" if "fraction_of_peak" in t else ""
        print(
            f"  {name:18s} {1e3 / t['wall_ms_median']:8.2f}/s  wall "
            f"{t['wall_ms_min']:8.1f} / {t['wall_ms_median']:8.1f} ms"
            f"  cpu {t['cpu_ms_median']:8.1f} ms{extra}"
        )
    for name in ("update", "plan_1"):
        if f"speedup_{name}" in entry:
            ratio = entry[f"speedup_{name}"]
            print(
                f"  {name}: {ratio['wall_ms_median']:.2f}x the authors' code (CPU "
                f"time {ratio['cpu_ms_median']:.2f}x)"
            )
        if f"compile_speedup_{name}" in entry:
            ratio = entry[f"compile_speedup_{name}"]
            print(
                f"  {name}: compiled {ratio['wall_ms_median']:.2f}x eager (CPU time "
                f"{ratio['cpu_ms_median']:.2f}x)"
            )


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=RESULTS.parent,
    )
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    return {
        "cpu": model[1] if model else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": Path("/proc/loadavg").read_text().split()[:3]
        if Path("/proc/loadavg").exists()
        else [],
        "commit": commit.stdout.strip(),
        "command": "python " + " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Parse the command line, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["1m", "5m"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--envs", nargs="+", type=int, default=[1, 16, 64], help="envs per planning call"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"]
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", type=Path, help="checkout of the authors' code")
    parser.add_argument("--compile", action="store_true", help="time torch.compile beside eager")
    parser.add_argument("--out", type=Path, default=RESULTS / "tdmpc2.json")
    options = parser.parse_args()
    report = {"machine": machine(), "entries": run(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
