"""What our path from the env into replay costs, against the bare env, on one core.

    python benchmarks/actors.py  # all parts, about two minutes; writes
    benchmarks/results/actors.json
    python benchmarks/actors.py rollout               # some parts

``rollout`` steps the bare env and our whole path (random actions, vector env, rows, chunks, codec,
replay shard in memory) in turns within one process and compares CPU seconds per decision, because
other work on the machine disturbs those least; the figure is the best of the turns for each.
``bare`` is one env by itself with actions drawn before, plus the resizing for Atari, which anybody
needs; ``bare_in_group`` steps as many of them in turns as we do. ``start`` is what a worker without
torch takes: memory of the process, and seconds to import and make an env.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from context import context

from worldloom.core.metrics import MetricMap
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, Chunk
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import build_env, env_spec, make_env
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.replay.shard import ReplayShard

GROUP = 8
TURNS = 9
CASES = {
    "atari": (
        EnvConfig(env="atari:pong", image_size=64, grayscale=False, sticky=0.0, full_actions=False),
        800,
    ),
    "half_cheetah": (EnvConfig(env="mujoco:half-cheetah"), 8000),
    "pendulum": (EnvConfig(env="gym:Pendulum-v1"), 16000),
}


class NobodyActs:
    """Stands where the policy would; actions are random."""

    version = NO_POLICY

    def refresh(self) -> None:
        """Nothing to fetch."""

    def drain_metrics(self) -> MetricMap:
        """Nothing happened."""
        return {}


class ShardWriter:
    """A replay shard without a process boundary and without a limit on what may come in."""

    def __init__(self, shard: ReplayShard) -> None:
        self.shard = shard

    def append(self, chunk: Chunk) -> None:
        """Store."""
        self.shard.append(chunk)


def cpu_us(work: Callable[[int], None], decisions: int) -> float:
    """CPU microseconds per decision."""
    begin = time.process_time()
    work(decisions)
    return (time.process_time() - begin) / decisions * 1e6


def bare_stepper(config: EnvConfig, num_envs: int) -> Callable[[int], None]:
    """Steps one env itself, or several in turns; for Atari with the resizing."""
    adapters = [build_env(config.resolved()) for _ in range(num_envs)]
    envs = [adapter._env for adapter in adapters]
    is_atari = config.suite == "atari"
    resize = next(iter(adapters[0]._reader.images.values()))._resize if is_atari else None
    actions = [envs[0].action_space.sample() for _ in range(1000)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def step(decisions: int) -> None:
        for number in range(decisions):
            env = envs[number % num_envs]
            obs, _, terminated, truncated, _ = env.step(actions[number % 1000])
            if resize is not None:
                resize(obs)
            if terminated or truncated:
                env.reset()

    return step


def our_stepper(config: EnvConfig) -> Callable[[int], None]:
    """Steps a worker whose rows go into a shard in memory."""
    columns = env_spec(config).columns()
    sampling = SamplingSpec(batch_size=16, length=16, cross_episodes=True)
    shard = ReplayShard(
        0, columns, sampling, capacity_rows=50_000, directory=None, durability="none"
    )
    worker = RolloutWorker(
        0,
        0,
        env=lambda: make_env(config, num_envs=GROUP, seed=0),
        acting=NobodyActs(),
        writer=ShardWriter(shard),  # type: ignore[arg-type]
        columns=columns,
        seed=0,
        may_use_policy=lambda: False,
    )

    def step(decisions: int) -> None:
        for _ in range(decisions // GROUP):
            worker.step()

    return step


def bench_rollout() -> dict[str, Any]:
    """Our path against the bare env."""
    results = {}
    for name, (config, decisions) in CASES.items():
        steppers = {
            "bare": bare_stepper(config, 1),
            "bare_in_group": bare_stepper(config, GROUP),
            "ours": our_stepper(config),
        }
        for stepper in steppers.values():
            stepper(decisions // 4)
        turns = [
            {kind: cpu_us(stepper, decisions) for kind, stepper in steppers.items()}
            for _ in range(TURNS)
        ]
        best = {kind: min(turn[kind] for turn in turns) for kind in steppers}
        results[name] = {
            "env": config.env,
            "envs_in_group": GROUP,
            "cpu_us_per_row": {kind: round(value, 1) for kind, value in best.items()},
            "added_us_per_row": round(best["ours"] - best["bare"], 1),
            "share_of_bare_rate": round(best["bare"] / best["ours"], 3),
            "share_of_bare_rate_in_turns": [
                round(turn["bare"] / turn["ours"], 3) for turn in turns
            ],
        }
    return results


def bench_processes() -> dict[str, Any]:
    """Envs in processes of their own: wall time per vector step, with an env that costs nothing."""
    config = EnvConfig(env="toy:point")
    steps = 2000
    results = {}
    for where, processes in (("in_process", False), ("supervised", True)):
        env = make_env(config, num_envs=GROUP, seed=0, processes=processes)
        action = {"action": np.zeros((GROUP, 2), np.float32)}
        env.reset()
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(steps // 5):
                env.step(action)
            times.append((time.perf_counter() - begin) / (steps // 5) / GROUP * 1e6)
        env.close()
        results[where + "_us_per_row"] = round(min(times), 1)
    return results


def bench_start() -> dict[str, Any]:
    """A worker that acts elsewhere: proportional set size, and seconds until its env is made."""
    code = (
        "import time; begin = time.perf_counter()\n"
        "import worldloom_dist.actors.rollout_worker\n"
        "from worldloom.envs.config import EnvConfig\n"
        "from worldloom.envs.factory import make_env\n"
        "make_env(EnvConfig(env='gym:Pendulum-v1'), seed=0).reset()\n"
        "seconds = time.perf_counter() - begin\n"
        "lines = open('/proc/self/smaps_rollup').read().split('\\n')\n"
        "pss = next(int(line.split()[1]) for line in lines if line.startswith('Pss:'))\n"
        "import sys; print(seconds, pss / 1e3, 'torch' in sys.modules)\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    return {
        "import_and_make_env_s": round(min(float(run[0]) for run in runs), 2),
        "pss_mb": round(statistics.median(float(run[1]) for run in runs), 1),
        "imports_torch": runs[0][2] == "True",
    }


PARTS = {"rollout": bench_rollout, "processes": bench_processes, "start": bench_start}


def main() -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent / "results" / "actors.json"
    )
    arguments = parser.parse_args()
    report = context()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # mujoco leaves a log where it runs
        for name in arguments.parts or PARTS:
            report[name] = PARTS[name]()
            print(name, json.dumps(report[name], indent=2))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
