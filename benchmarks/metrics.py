"""What watching a run costs: the learner's bookkeeping, the hub, a scrape, and the commands that
should answer at once.

    python benchmarks/metrics.py --live 64       # writes benchmarks/results/metrics.json
    python benchmarks/metrics.py --quick         # without a real run, and nothing is written

The targets: at most 1 % of the learner's time, 1 % of a core for 64 workers, 50 ms for a scrape,
0.5 s for ``status`` and ``--help``. Costs are CPU time of one thread. The hub's cost counts
unpickling and merging each flush; what Ray's own transport of a call takes is in ``--live``, which
starts a run with two workers and one with many, and reads the hub process' CPU time from their own
metrics: the difference is what the workers cost, the rest is there for any run (other roles, the
driver, scrapes).
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from context import context

from worldloom.core.metrics import Histogram, Last, MetricMap, Sum
from worldloom.data.windows import SampledWindows
from worldloom_dist.actors.acting import ActMeter
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.metrics.endpoint import serve
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.names import BUCKETS_S, LAG_BUCKETS
from worldloom_dist.metrics.process import ProcessMeter
from worldloom_dist.run.builders import build_learner, build_shard
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, flush_interval_s

WORKERS = 64
SCRAPE_EVERY_S = 5.0


def cpu_s(action: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call, the median of five blocks."""
    blocks = []
    for _ in range(5):
        started = time.thread_time()
        for _ in range(repeats):
            action()
        blocks.append((time.thread_time() - started) / repeats)
    return statistics.median(blocks)


def learner_share(updates: int) -> dict[str, float]:
    """Share of ``Learner.train`` that is bookkeeping, for the quick run's agent: the smallest, so
    the worst case.
    """
    plan = resolve(parse(["--preset", "quick"]))
    with tempfile.TemporaryDirectory() as folder:
        shard = build_shard(plan, 0, Path(folder))
        rows = plan.spec.sampling.window_rows
        learner = build_learner(
            plan, WeightStore(), device="cpu", incarnation=1, folder=Path(folder)
        )
        count = plan.spec.sampling.batch_size
        rng = np.random.default_rng(0)
        columns = {
            name: spec.zeros(count * rows).reshape(count, rows, *spec.shape)
            for name, spec in shard.columns.items()
        }
        for column in columns.values():
            if column.dtype == np.float32:
                column[:] = rng.normal(size=column.shape)
        ids = np.arange(count * rows).reshape(count, rows)
        windows = SampledWindows(
            columns,
            ids,
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.full(count, time.time()),
        )
        learner.train(windows)
        update_s = cpu_s(lambda: learner.train(windows), updates)

        def bookkeeping() -> None:  # what train() and its caller add to the agent's own update
            learner.note("wait_data", 0.01)
            for phase in ("to_device", "forward_backward"):
                learner._phases[phase].add(0.01)
            learner._ages.add(max(0.0, time.time() - float(windows.inserted_s.mean())))

        note_s = cpu_s(bookkeeping, 2000)
        drain_s = cpu_s(learner.drain_metrics, 50)
        process_s = cpu_s(ProcessMeter().drain, 20)
        shard.close()
    per_second = note_s / update_s + (drain_s + process_s) / FLUSH_EVERY_S
    return {
        "update_cpu_s": update_s,
        "note_cpu_s": note_s,
        "drain_cpu_s": drain_s + process_s,
        "share_of_learner_time": per_second,
    }


def worker_flush() -> MetricMap:
    """What a worker sends, with the names of a real one."""
    meter = ActMeter()
    meter.add(1, 0.01)
    states = ("env", "inference", "encode", "blocked", "pull_weights")
    values: MetricMap = {
        "agent_steps_total": Sum(100),
        "env_steps_total": Sum(100),
        "env_step_seconds": Histogram.of(BUCKETS_S, 0.001),
    }
    values |= {f"actor_seconds_total{{state={state}}}": Sum(0.1) for state in states}
    values |= {
        "weights_pulled_total": Sum(1),
        "policy_version": Last(5.0),
        "weights_pull_failures_total": Sum(0),
    }
    return {**values, **meter.drain(), **ProcessMeter().drain()}


def hub_cost() -> dict[str, float]:
    """Share of a core for the flushes of 64 workers, and how long a scrape takes then."""
    hub = MetricsHub("bench", {"env": "none"})
    flush = pickle.dumps(
        (worker_flush(), {"episodes": [{"return": 1.0, "length": 200, "reason": "truncated"}]})
    )
    for worker in range(WORKERS):
        hub.emit("actor", worker, *pickle.loads(flush))
    for shard in range(8):
        hub.emit(
            "replay",
            shard,
            {
                "policy_lag_updates": Histogram.of(LAG_BUCKETS, 3.0),
                "queue_items{queue=trajectories}": Last(1.0),
            },
        )
    losses = {f"loss{{name=l{index}}}": Last(1.0) for index in range(12)}
    hub.emit(
        "learner",
        0,
        {**losses, **{f"model_stat{{name=s{index}}}": Last(1.0) for index in range(20)}},
    )
    emit_s = cpu_s(lambda: hub.emit("actor", 3, *pickle.loads(flush)), 500)
    server, port = serve(hub, "127.0.0.1", 0)
    times = []
    try:
        for _ in range(50):
            started = time.perf_counter()
            size = len(
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
            )
            times.append(time.perf_counter() - started)
    finally:
        server.shutdown()
        server.server_close()
    return {
        "workers": WORKERS,
        "flush_bytes": len(flush),
        "emit_cpu_s": emit_s,
        "merge_share_of_a_core": emit_s * WORKERS / flush_interval_s(WORKERS),
        "scrape_ms": {
            "median": 1e3 * statistics.median(times),
            "max": 1e3 * max(times),
            "bytes": size,
        },
    }


def command_times(repeats: int) -> dict[str, float]:
    """Median wall seconds of commands that should answer at once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = {"run_id": "bench", "run": parse([]).to_dict()}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps({"status": "completed"}))
        record = {
            "kind": "train",
            "env_steps": 1,
            **{f"metric_{index}": 1.0 for index in range(150)},
        }
        # two days of a run
        (folder / "metrics.jsonl").write_text((json.dumps(record) + "\n") * 20_000)
        commands = {"status": ["status", str(folder)], "launch --help": ["launch", "--help"]}
        found = {}
        for name, words in commands.items():
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", f"worldloom_dist.{words[0]}", *words[1:]],
                    check=True,
                    capture_output=True,
                )
                times.append(time.perf_counter() - started)
            found[name] = statistics.median(times)
    return found


def live_hub(workers: int, seconds: float) -> dict[str, float]:
    """A real run with many workers: CPU of the hub's process as a share of a core, and scrapes
    while it runs.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        port = 19464
        words = [
            "--preset",
            "debug",
            "--workers",
            str(workers),
            "--env-steps",
            "100000000",
            "--eval-episodes",
            "0",
        ]
        command = [
            sys.executable,
            "-m",
            "worldloom_dist.launch",
            *words,
            "--run-dir",
            str(folder),
            "--metrics-port",
            str(port),
        ]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            give_up = time.monotonic() + 400
            while _series(port).get(("workers", "alive"), 0) < workers:
                if run.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError("the run did not bring up its workers")
                time.sleep(2.0)
            before = _series(port)
            began = time.monotonic()
            times = []
            while time.monotonic() - began < seconds:
                time.sleep(SCRAPE_EVERY_S)
                started = time.perf_counter()
                after = _series(port)
                times.append(time.perf_counter() - started)
            passed = time.monotonic() - began
        finally:
            run.terminate()
            run.wait(120)
    spent = (
        after[("process_cpu_seconds_total", "hub")] - before[("process_cpu_seconds_total", "hub")]
    )
    return {
        "workers": workers,
        "hub_share_of_a_core": spent / passed,
        "scrape_ms_median": 1e3 * statistics.median(times),
    }


def _series(port: int) -> dict[tuple[str, str], float]:
    """(name, state or role) -> value."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        )
    except OSError:
        return {}
    samples = (
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    )
    return {
        (
            sample.name.removeprefix("worldloom_"),
            sample.labels.get("state") or sample.labels["role"],
        ): sample.value
        for sample in samples
        if "role" in sample.labels
    }


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, and nothing is written")
    parser.add_argument(
        "--live",
        type=int,
        default=0,
        metavar="WORKERS",
        help="measure a real run with this many workers too",
    )
    options = parser.parse_args()
    result: dict[str, Any] = {
        **context(),
        "learner": learner_share(3 if options.quick else 30),
        "hub": hub_cost(),
    }
    result["commands_s"] = command_times(2 if options.quick else 7)
    if options.live:
        seconds = 10.0 if options.quick else 60.0
        few = live_hub(2, seconds)
        many = live_hub(options.live, seconds)
        share = (
            (many["hub_share_of_a_core"] - few["hub_share_of_a_core"])
            / (options.live - 2)
            * WORKERS
        )
        result["live"] = {"few": few, "many": many, "share_of_a_core_for_64_workers": share}
    text = json.dumps(result, indent=2)
    if not options.quick:
        (Path(__file__).parent / "results" / "metrics.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
