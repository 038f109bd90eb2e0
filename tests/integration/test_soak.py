"""A long run with a full replay: memory, open files and threads stay flat. ``WORLDLOOM_SOAK_MINUTES`` says how long (30)."""

import os
import signal
import time

import numpy as np
import psutil
import pytest

from tests.integration.running import launched

MINUTES = float(os.environ.get("WORLDLOOM_SOAK_MINUTES", "30"))
WARM_UP_SHARE = 0.3
ROLES = ("ray::LearnerRole", "ray::ShardRole", "ray::LedgerRole", "ray::WeightStoreRole", "ray::HubRole", "ray::WorkerRole")

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(int(MINUTES * 60) + 400)]


def look(run) -> dict[str, tuple[float, int, int]]:
    """Per process: unique memory in MB, open files, threads."""
    found = {}
    for title in ROLES:
        for pid in run.pids(title):
            process = psutil.Process(pid)
            found[f"{title}:{pid}"] = (process.memory_full_info().uss / 2**20, process.num_fds(), process.num_threads())
    return found


def test_nothing_grows(tmp_path):
    folder = tmp_path / "run"
    words = "--preset debug --env toy:counting --workers 2 --eval-episodes 0 --env-steps 100000000 --metrics-port 0"
    with launched(folder, *words.split(), "--replay.capacity-steps", "2000", "--run-dir", str(folder)) as run:
        run.wait_until(lambda: run.summary().get("rows", {}).get("evicted", 0) > 500, 300)  # the replay is full
        time.sleep(MINUTES * 60 * WARM_UP_SHARE)
        samples, end = [], time.monotonic() + MINUTES * 60 * (1 - WARM_UP_SHARE)
        while time.monotonic() < end:
            samples.append((time.monotonic(), look(run)))
            time.sleep(max(1.0, MINUTES * 60 / 200))
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert sum(summary["restarts"].values()) == 0
    assert summary["rows"]["inserted"] == summary["rows"]["stored"] + summary["rows"]["evicted"]
    names = set.intersection(*(set(values) for _, values in samples))
    assert len(names) >= len(ROLES), "every role lived from the first look to the last"
    hours = np.array([(at - samples[0][0]) / 3600 for at, _ in samples])
    for name in sorted(names):
        memory, files, threads = np.array([values[name] for _, values in samples]).T
        slope = float(np.polyfit(hours, memory, 1)[0])
        grown = slope * float(hours[-1])
        print(f"{name}: {memory[-1]:.0f} MB, {slope:+.2f} MB/h, {files[0]:.0f} to {files[-1]:.0f} files, {threads[-1]:.0f} threads")
        assert slope < 1.0 or grown < 2.0, f"{name} grows by {slope:.2f} MB/h"
        assert np.median(files[len(files) // 2 :]) <= np.median(files[: len(files) // 2]) + 2, f"{name} leaks files"
        assert np.median(threads[len(threads) // 2 :]) <= np.median(threads[: len(threads) // 2]) + 2, f"{name} leaks threads"
