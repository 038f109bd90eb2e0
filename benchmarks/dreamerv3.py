"""DreamerV3 on one CPU thread: milliseconds per update and per decision, where the time goes, and
how close to the peak.

    python benchmarks/dreamerv3.py  # every case; writes benchmarks/results/dreamerv3.json
    python benchmarks/dreamerv3.py --store act img       # some cases, stored beside the others
    python benchmarks/dreamerv3.py update vec size1m     # one case, printed only
    python benchmarks/dreamerv3.py act img size1m
    python benchmarks/dreamerv3.py --precision bfloat16 --store update  # stored as "... bfloat16"

Cases as in the published comparisons: batch 16 x 64 (+1 context row), imagination 15, float32
(or ``--precision bfloat16``), random data; ``vec`` is 24 numbers and 6 continuous actions, ``img``
is 64x64x3 and 6 discrete ones.
Each case runs in a process of its own, so that the peak of resident memory is its own. ``cpu_ms``
is the CPU time of the process, which other work on the machine disturbs least; ``wall_ms`` means
something on a quiet machine only (``load`` says how quiet it was). ``fraction_of_peak`` compares
the multiply-adds of an update with a 1024-cubed matrix product in the case's precision on the same
thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldloom.algorithms.dreamerv3.agent import DreamerV3Agent, make_agent, make_policy
from worldloom.algorithms.dreamerv3.spec import PRESETS, DreamerV3AgentConfig
from worldloom.core.cpu import cpu_name
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.runtime.allocator import keep_freed_memory

ENVS = {
    "vec": EnvSpec(name="vec", obs={"obs": ArraySpec((24,))}, action={"action": ArraySpec((6,))}),
    "img": EnvSpec(
        name="img",
        obs={"obs": ArraySpec((64, 64, 3), "uint8")},
        action={"action": ArraySpec((), "int64", (6,))},
    ),
}
SIZES = ("size1m", "size12m")
UPDATES = {("vec", "size1m"): 8, ("img", "size1m"): 5, ("vec", "size12m"): 4, ("img", "size12m"): 2}
ENV_COUNTS = (1, 16, 64)
PEERS_MS = {
    "update vec size1m": {"official JAX": 1044, "TorchRL": 1195, "r2dreamer": 1385},
    "update img size1m": {"r2dreamer": 4546, "official JAX": 9021},
    "update vec size12m": {"TorchRL": 7372, "official JAX": 8038, "r2dreamer": 8344},
    "update img size12m": {"r2dreamer": 26095, "official JAX": 35098},
    "act vec size1m": {"official JAX": [1.43, 2.00, 3.17], "r2dreamer": [1.65, 2.15, 3.50]},
    "act img size1m": {"official JAX": [3.21, 24.40, 86.25], "r2dreamer": [2.58, 9.60, 23.94]},
    "act vec size12m": {"official JAX": [13.11, 20.30, 29.44], "r2dreamer": [14.22, 17.46, 26.23]},
    "act img size12m": {
        "official JAX": [21.01, 71.88, 275.26],
        "r2dreamer": [16.75, 44.19, 147.83],
    },
}
"""Medians of other implementations on one thread of a machine of the same kind, same settings and
architecture.
"""
PEER_MEMORY_MB = {
    "update vec size1m": 1039,
    "update img size1m": 2267,
    "update vec size12m": 2031,
    "update img size12m": 6375,
}
"""Peak resident memory of r2dreamer in the same cases."""


def random_array(spec: ArraySpec, rng: np.random.Generator, *lead: int) -> np.ndarray:
    """Data that costs what real data costs."""
    if spec.num_classes:
        return rng.integers(0, spec.num_classes[0], (*lead, *spec.shape)).astype(spec.dtype)
    if spec.dtype == "bool":
        return rng.random((*lead, *spec.shape)) < 0.01
    if spec.dtype == "float32":
        return rng.standard_normal((*lead, *spec.shape), np.float32)
    return rng.integers(0, 256, (*lead, *spec.shape)).astype(spec.dtype)


def random_batch(agent: DreamerV3Agent, env: EnvSpec) -> SequenceBatch:
    """One batch with stored latents."""
    rng = np.random.default_rng(0)
    sampling = agent.spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {
        name: random_array(spec, rng, *lead)
        for name, spec in env.columns(agent.spec.extras).items()
    }
    columns["latent/stoch"] %= agent.config.classes
    columns["latent/deter"] = (
        torch.from_numpy(rng.uniform(-1, 1, columns["latent/deter"].shape))
        .bfloat16()
        .view(torch.uint16)
        .numpy()
    )
    return SequenceBatch.from_columns(columns).map(torch.from_numpy)


def timed(work: Callable[[], object], repetitions: int) -> tuple[list[float], list[float]]:
    """Wall and CPU milliseconds of each repetition."""
    wall = []
    cpu = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        begin_cpu = time.process_time()
        work()
        wall.append((time.perf_counter() - begin) * 1e3)
        cpu.append((time.process_time() - begin_cpu) * 1e3)
    return wall, cpu


def spread(values: list[float]) -> dict[str, float]:
    """Least and median."""
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}


def peak_flops(precision: str) -> float:
    """Floating-point operations per CPU second of a large matrix product."""
    a = torch.randn(1024, 1024).to(getattr(torch, precision))
    b = torch.randn(1024, 1024).to(getattr(torch, precision))
    _, cpu = timed(lambda: a @ b, 8)
    return 2 * 1024**3 / (min(cpu) / 1e3)


def phases(agent: DreamerV3Agent, batch: SequenceBatch) -> dict[str, float]:
    """CPU milliseconds of one update by phase; what is left over is everything between them."""
    spent: dict[str, float] = {}

    def watch(owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            result = inner(*args, **kwargs)
            spent[phase] = spent.get(phase, 0.0) + (time.process_time() - begin) * 1e3
            return result

        setattr(owner, name, wrapper)

    networks = agent.all_networks
    targets = [
        (networks.model, "tokens", "encoder"),
        (networks.model.dyn, "observe", "filtering scan"),
        (networks.model.dec, "losses", "decoder"),
        (networks, "imagine", "imagination"),
        (networks, "behavior", "actor and critic"),
        (networks, "replay_loss", "replayed value"),
        (agent.optimizer, "step", "optimizer"),
        (torch.autograd, "grad", "backward"),
    ]
    original = torch.autograd.grad
    for target in targets:
        watch(*target)
    begin = time.process_time()
    agent.train_step(batch)
    spent["other"] = (time.process_time() - begin) * 1e3 - sum(spent.values())
    torch.autograd.grad = original
    return {phase: round(value, 1) for phase, value in spent.items()}


def settings_of(size: str, precision: str) -> DreamerV3AgentConfig:
    """A preset that computes in a precision."""
    return dataclasses.replace(PRESETS[size](), precision=precision)


def update_case(kind: str, size: str, precision: str) -> dict[str, Any]:
    """One preset's update."""
    env = ENVS[kind]
    agent = make_agent(settings_of(size, precision), env)
    batch = random_batch(agent, env)
    agent.train_step(batch)
    wall, cpu = timed(lambda: agent.train_step(batch), UPDATES[kind, size])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    with FlopCounterMode(display=False) as counter:
        agent.train_step(batch)
    flops = counter.get_total_flops()
    peak = peak_flops(precision)
    return {
        "precision": precision,
        "parameters": sum(p.numel() for p in agent.all_networks.trained().values()),
        "wall_ms": spread(wall),
        "cpu_ms": spread(cpu),
        "peak_rss_mb": round(memory),
        "gflop": round(flops / 1e9, 1),
        "peak_gflops_of_machine": round(peak / 1e9, 1),
        "fraction_of_peak": round(flops / (min(cpu) / 1e3) / peak, 3),
        "phase_cpu_ms": phases(agent, batch),
    }


def act_case(kind: str, size: str, precision: str) -> dict[str, Any]:
    """One preset's decision for 1, 16 and 64 envs."""
    env = ENVS[kind]
    results = {}
    policy = make_policy(settings_of(size, precision), env)
    rng = np.random.default_rng(0)
    for num_envs in ENV_COUNTS:
        obs = {name: random_array(spec, rng, num_envs) for name, spec in env.obs.items()}
        carry = policy.initial_carry(num_envs)
        first = np.zeros(num_envs, bool)

        def act(obs: Any = obs, carry: Any = carry, first: Any = first) -> None:
            policy.act(obs, carry, first, explore=True)

        timed(act, 5)
        wall, cpu = timed(act, 40 if num_envs < 64 else 15)
        results[str(num_envs)] = {"wall_ms": spread(wall), "cpu_ms": spread(cpu)}
    return results


def run_case(name: str, precision: str) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--precision", precision, *name.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, result: dict[str, Any]) -> str:
    """One line: ours against the best peer."""
    peers = PEERS_MS[name]
    if name.startswith("update"):
        best = min(peers, key=lambda peer: peers[peer])
        ours = result["cpu_ms"]["median"]
        memory = result["peak_rss_mb"] / PEER_MEMORY_MB[name]
        against = f"{ours / peers[best]:.2f} x {best} ({peers[best]} ms)"
        return (
            f"{name}: {ours:.0f} ms CPU, {against}; {result['peak_rss_mb']} MB, "
            f"{memory:.2f} x r2dreamer"
        )
    parts = []
    for i, num_envs in enumerate(ENV_COUNTS):
        ours = result[str(num_envs)]["cpu_ms"]["median"]
        best_ms = min(times[i] for times in peers.values())
        parts.append(f"{num_envs} envs {ours:.2f} ms ({ours / best_ms:.2f} x best peer)")
    return f"{name}: " + ", ".join(parts)


def main() -> None:
    """Print one case, or run those whose name begins as told and store them beside the ones stored
    before.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="update|act vec|img PRESET")
    parser.add_argument(
        "--store",
        action="store_true",
        help="the words are the beginning of the names of cases to run and store",
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(is_training=True)  # as the learner of a run does
    if arguments.case and not arguments.store:
        task, kind, size = arguments.case
        run = update_case if task == "update" else act_case
        print(json.dumps(run(kind, size, arguments.precision)))
        return
    begin = " ".join(arguments.case)
    store([name for name in PEERS_MS if name.startswith(begin)], arguments.precision)


def store(names: list[str], precision: str) -> None:
    """Run cases, each in its own process, and put them into the file of results."""
    path = Path(__file__).parent / "results" / "dreamerv3.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    for name in names:
        key = name if precision == "float32" else f"{name} {precision}"
        load = {"load": round(os.getloadavg()[0], 2), "commit": commit}
        results[key] = run_case(name, precision) | load
        print(compare(name, results[key]), precision, flush=True)
    report = {
        "command": "python benchmarks/dreamerv3.py",
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "threads": 1,
        "peers_median_ms": PEERS_MS,
        "peers_peak_rss_mb": PEER_MEMORY_MB,
        "results": results,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
