"""How many workers fit: start a run with many workers, and read how long it took and what each of
them takes.

    python benchmarks/scale.py  # 64 workers; writes benchmarks/results/scale.json
    python benchmarks/scale.py --workers 16
    python benchmarks/scale.py --envs dmc:cheetah-run mt:dmc10  # scale_tasks.json

A worker counts as started when its first chunk is acknowledged. The train ratio is so low that the
limiter holds no worker back: with the preset's own, workers would wait for the learner, which is
late because the workers start. Memory is the proportional set size (PSS) of the worker's process
and its children, read from ``/proc`` when the run has trained.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from context import context

from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.records import CHUNK, StoredChunk

GIVE_UP_S = 500.0
RATE_S = 60.0
"""Over which the env steps and updates of a run are counted."""
PENDULUM = "gym:Pendulum-v1"
OTHERS = (
    "LearnerRole",
    "InferenceRole",
    "ShardRole",
    "CoordinatorRole",
    "HubRole",
    "WeightStoreRole",
)


def pss_mb(process: psutil.Process) -> float:
    """Proportional set size of a process and its children, MB."""
    family = [process, *process.children(recursive=True)]
    texts = [Path(f"/proc/{member.pid}/smaps_rollup").read_text() for member in family]
    return (
        sum(int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE).group(1)) for text in texts)
        / 1024
    )  # type: ignore[union-attr]


def roles(name: str) -> list[psutil.Process]:
    """Ray processes of one role."""
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if " ".join(p.info["cmdline"] or []).startswith(f"ray::{name}")
    ]


def first_insert(folder: Path) -> dict[int, float]:
    """Worker slot -> when its first chunk was acknowledged (unix time), from the journals of a run
    that has ended.
    """
    first: dict[int, float] = {}
    for directory in (folder / "replay").glob("shard-*"):
        journal = Journal(directory)
        for record in journal.read():
            if record.kind == CHUNK:
                stored = StoredChunk.unpack(record.payload)
                slot = stored.chunk.stream.slot
                first[slot] = min(first.get(slot, stored.inserted_s), stored.inserted_s)
        journal.close()
    return first


def measure(workers: int, env: str) -> dict[str, Any]:
    """Start, wait until every worker lives and the learner has trained, read memory and how fast
    the run is, stop.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        words = ["--preset", "quick", "--workers", str(workers), "--run-dir", str(folder)]
        words += ["--env", env]
        words += [
            "--env-steps",
            "1000000",
            "--eval-episodes",
            "0",
            "--train-ratio",
            "1",
            "--agent.pretrain-updates",
            "1",
        ]
        started = time.time()
        run = subprocess.Popen(
            [sys.executable, "-m", "worldloom_dist.launch", *words], stdout=subprocess.DEVNULL
        )
        try:
            wait(run, lambda: len(roles("WorkerRole")) == workers)
            wait(run, lambda: summary(folder).get("agent_steps", 0) > 100 * workers)
            trained_s = time.time() - started
            memory = sorted(pss_mb(process) for process in roles("WorkerRole"))
            others = {name: sum(map(pss_mb, roles(name))) for name in OTHERS}
            used = psutil.virtual_memory().used / 2**30
            before = summary(folder)
            time.sleep(RATE_S)
            after = summary(folder)
        finally:
            run.terminate()
            run.wait(60)
        first = first_insert(folder)
    passed = after["wall_time_s"] - before["wall_time_s"]
    rates = {
        f"{name}_per_s": (after[name] - before[name]) / passed
        for name in ("env_steps", "train_steps")
    }
    return {
        "env": env,
        "workers": workers,
        **rates,
        "workers_that_stored_rows": len(first),
        "all_workers_have_stored_rows_after_s": max(first.values()) - started,
        "hundred_agent_steps_per_worker_after_s": trained_s,
        "worker_pss_mb": {
            "median": statistics.median(memory),
            "max": memory[-1],
            "sum": sum(memory),
        },
        "other_pss_mb": others,
        "machine_used_gb": used,
    }


def wait(run: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    give_up = time.monotonic() + GIVE_UP_S
    while not condition():
        if run.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"the run ended or took longer than {GIVE_UP_S:.0f} s")
        time.sleep(0.5)


def summary(folder: Path) -> dict[str, Any]:
    """The run's summary so far."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--envs", nargs="+", help="a run of each, one after the other")
    options = parser.parse_args()
    if options.envs:
        result = context() | {"runs": [measure(options.workers, env) for env in options.envs]}
    else:
        result = context() | measure(options.workers, PENDULUM)
    text = json.dumps(result, indent=2)
    name = "scale_tasks" if options.envs else "scale"
    (Path(__file__).parent / "results" / f"{name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
