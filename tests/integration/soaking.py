"""Let a run go on for long with a full replay, and look at its processes' memory, open files and
threads meanwhile.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.integration.running import Launched, launched

__all__ = ["ROLES", "Growth", "Soak", "soak"]

ROLES = (
    "ray::LearnerRole",
    "ray::ShardRole",
    "ray::CoordinatorRole",
    "ray::WeightStoreRole",
    "ray::HubRole",
    "ray::WorkerRole",
)
WORDS = (
    "--preset debug --env toy:counting --workers 2 --eval-episodes 0 --env-steps "
    "100000000 --metrics-port 0"
)
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
class Soak:
    """A soak: its length, the last summary of its run, and what became of every process that lived
    through all looks.
    """

    minutes: float
    looks: int
    summary: dict[str, Any]
    leftovers: list[str]
    growth: dict[str, Growth]


def soak(folder: Path, minutes: float) -> Soak:
    """Run for ``minutes`` after the replay is full; the first share of them is warm-up and not
    looked at.
    """
    words = [
        *WORDS.split(),
        "--replay.capacity-steps",
        str(CAPACITY_STEPS),
        "--run-dir",
        str(folder),
    ]
    with launched(folder, *words) as run:
        # the replay is full
        run.wait_until(lambda: run.summary().get("rows", {}).get("evicted", 0) > 500, 300)
        time.sleep(minutes * 60 * WARM_UP_SHARE)
        samples = []
        end = time.monotonic() + minutes * 60 * (1 - WARM_UP_SHARE)
        while time.monotonic() < end:
            samples.append((time.monotonic(), _look(run)))
            time.sleep(max(1.0, minutes * 60 / LOOKS))
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        return Soak(
            minutes=minutes,
            looks=len(samples),
            summary=run.summary(),
            leftovers=run.leftovers(),
            growth=_growth(samples),
        )


def _look(run: Launched) -> dict[str, tuple[float, int, int]]:
    """Per process: unique memory in MB, open files, threads."""
    found = {}
    for title in ROLES:
        for pid in run.pids(title):
            process = psutil.Process(pid)
            found[f"{title}:{pid}"] = (
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
