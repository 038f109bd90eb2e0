"""Let a run go on for long with a full replay, and look at its processes' memory, open files and
threads meanwhile, and at what it says of itself: speed, latencies, object store, disk.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.integration.running import Launched, launched

__all__ = ["DRIVER", "ROLES", "Drift", "Growth", "Soak", "drift_of", "soak"]

DRIVER = "driver"
ROLES = (
    "ray::LearnerRole",
    "ray::ShardRole",
    "ray::CoordinatorRole",
    "ray::WeightStoreRole",
    "ray::HubRole",
    "ray::WorkerRole",
)
"""What every run has."""
LOOKED_AT = (*ROLES, "ray::InferenceRole")
WORDS = "--preset debug --env toy:counting --eval-episodes 0 --env-steps 100000000 --metrics-port 0"
DRIFTING = (
    "env_steps_per_s",
    "updates_per_s",
    "env_step_seconds",
    "inference_seconds",
    "replay_op_seconds{op=insert}",
    "replay_op_seconds{op=sample}",
    "learner_update_seconds{phase=forward_backward}",
    "learner_update_seconds{phase=wait_data}",
    "weights_pull_seconds",
    "object_store_used_bytes",
    "replay_bytes{storage=disk}",
)
"""Of ``metrics.jsonl``: what must not go one way for hours."""
CAPACITY_STEPS = 2000
WARM_UP_SHARE = 0.3
LOOKS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What became of one process after the warm-up: a straight line through its unique memory, and
    medians of both halves.
    """

    memory_mb: float
    memory_mb_per_hour: float
    memory_mb_grown: float
    files_before: float
    files_after: float
    threads_before: float
    threads_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Medians of a metric in the first and in the second half of what followed the warm-up."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """A soak: its length, the last summary of its run, what became of every process that lived
    through all looks, and of what the run measures itself.
    """

    minutes: float
    workers: int
    looks: int
    summary: dict[str, Any]
    leftovers: list[str]
    growth: dict[str, Growth]
    drift: dict[str, Drift]

    @property
    def growth_by_role(self) -> dict[str, dict[str, float]]:
        """Per role the number of its processes, and of every value the largest."""
        names = {name.partition(":pid ")[0] for name in self.growth}
        found: dict[str, dict[str, float]] = {}
        for role in sorted(names):
            ones = [one for name, one in self.growth.items() if name.partition(":pid ")[0] == role]
            found[role] = {
                "processes": len(ones),
                **{key: max(getattr(one, key) for one in ones) for key in Growth.__slots__},
            }
        return found


def soak(folder: Path, minutes: float, workers: int = 2) -> Soak:
    """Run for ``minutes`` after the replay is full; the first share of them is warm-up and not
    looked at.
    """
    words = [
        *WORDS.split(),
        "--workers",
        str(workers),
        "--replay.capacity-steps",
        str(CAPACITY_STEPS),
        "--run-dir",
        str(folder),
    ]
    with launched(folder, *words) as run:
        # the replay is full
        run.wait_until(lambda: run.summary().get("rows", {}).get("evicted", 0) > 500, 600)
        time.sleep(minutes * 60 * WARM_UP_SHARE)
        samples = []
        began = time.time()
        end = time.monotonic() + minutes * 60 * (1 - WARM_UP_SHARE)
        while time.monotonic() < end:
            samples.append((time.monotonic(), _look(run)))
            time.sleep(max(1.0, minutes * 60 / LOOKS))
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record.get("time", 0) >= began]
        return Soak(
            minutes=minutes,
            workers=workers,
            looks=len(samples),
            summary=run.summary(),
            leftovers=run.leftovers(),
            growth=_growth(samples),
            drift=drift_of(records),
        )


def drift_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Drift]:
    """Of every metric in ``DRIFTING`` that at least two records have."""
    found = {}
    for name in DRIFTING:
        values = [record[name] for record in records if record.get(name) is not None]
        half = len(values) // 2
        if half:
            before, after = np.median(values[:half]), np.median(values[half:])
            found[name] = Drift(before=float(before), after=float(after))
    return found


def _look(run: Launched) -> dict[str, tuple[float, int, int]]:
    """Per process: unique memory in MB, open files, threads."""
    found = {}
    for title in (DRIVER, *LOOKED_AT):
        for pid in [run.process.pid] if title == DRIVER else run.pids(title):
            process = psutil.Process(pid)
            found[f"{title}:pid {pid}"] = (
                process.memory_full_info().uss / 2**20,
                process.num_fds(),
                process.num_threads(),
            )
    return found


def _growth(samples: list[tuple[float, dict[str, tuple[float, int, int]]]]) -> dict[str, Growth]:
    hours = np.array([(at - samples[0][0]) / 3600 for at, _ in samples])
    growth = {}
    for name in sorted(set.intersection(*(set(values) for _, values in samples))):
        memory, files, threads = np.array([values[name] for _, values in samples]).T
        slope = float(np.polyfit(hours, memory, 1)[0])
        half = len(samples) // 2
        growth[name] = Growth(
            memory_mb=float(memory[-1]),
            memory_mb_per_hour=slope,
            memory_mb_grown=slope * float(hours[-1]),
            files_before=float(np.median(files[:half])),
            files_after=float(np.median(files[half:])),
            threads_before=float(np.median(threads[:half])),
            threads_after=float(np.median(threads[half:])),
        )
    return growth
