"""How well the learner is fed, and what publishing and checkpoints cost it.

    OMP_NUM_THREADS=1 python benchmarks/learner.py [--agent tdmpc2:ci] [--seconds 60] [--label NAME]

Three numbers, measured one after the other on this machine:

* ``staged``: updates/s of the learner alone on one batch that is ready in memory, pinned to one core;
* ``live``: updates/s of a run on Ray with live actors that always owe training something (a high train ratio), after its burst,
  with the share of the training thread's time by phase, and what an update takes of the learner's core: CPU of the training
  thread, CPU of the process's other threads (feed, Ray), and how long the training thread waited for the core; once with the whole
  learner process on a core of its own, and once with the training thread alone there;
* ``checkpoint``: how long the training thread stands still for one, and ``publish`` likewise.

With CUDA there are also milliseconds per update with and without a captured graph. Writes benchmarks/results/learner[_LABEL].json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from context import context

from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.assembly import build_learner
from worldloom_dist.cli import parse
from worldloom_dist.learner.checkpointing import CheckpointWriter
from worldloom_dist.learner.step import choose_device
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.plan import Plan, resolve
from worldloom_dist.ports import SampledWindows

RESULTS = Path(__file__).parent / "results"


def random_windows(plan: Plan) -> SampledWindows:
    """One batch of noise of the right shape, as from the object store: read-only."""
    rng, sampling = np.random.default_rng(0), plan.spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {}
    for name, spec in plan.columns.items():
        shape = (*lead, *spec.shape)
        columns[name] = rng.normal(size=shape).astype(spec.dtype) if spec.dtype.startswith("float") else np.zeros(shape, spec.dtype)
        columns[name].flags.writeable = False
    zeros = np.zeros(lead[0], np.int64)
    return SampledWindows(columns, np.arange(lead[0] * lead[1]).reshape(lead), zeros, zeros, np.full(lead[0], time.time()))


def measure_staged(plan: Plan, seconds: float, folder: Path) -> dict[str, float]:
    """The learner alone: updates/s, and what publishing and a checkpoint cost its thread."""
    device = choose_device(plan.config.learner.device)
    learner = build_learner(plan, WeightStore(), device=device, incarnation=1, folder=folder)
    windows = random_windows(plan)
    for _ in range(8):
        learner.train(windows)
    _wait(device)
    started, busy, count = time.monotonic(), time.thread_time(), 0
    while time.monotonic() - started < seconds:
        learner.train(windows)
        count += 1
    _wait(device)
    rate = count / (time.monotonic() - started)
    busy = time.thread_time() - busy
    writer = CheckpointWriter(CheckpointStore(folder / "checkpoints"))
    stalls, publishes = [], []
    for _ in range(5):
        learner.train(windows)
        _wait(device)
        while not writer.is_idle:
            time.sleep(0.01)
        began = time.monotonic()
        learner.publish()  # while no checkpoint is written, as nearly always
        publishes.append(time.monotonic() - began)
        began = time.monotonic()
        writer.save(learner.train_steps, {"learner": learner.state_dict()}, {})
        stalls.append(time.monotonic() - began)
    writer.close()
    every = plan.config.learner.publish_every_s
    return {
        "updates_per_s": rate,
        "ms_per_update": 1000 / rate,
        "training_thread_cpu_ms": 1000 * busy / count,
        "checkpoint_stall_ms_median": 1000 * statistics.median(stalls),
        "checkpoint_stall_ms_max": 1000 * max(stalls),
        "publish_ms_median": 1000 * statistics.median(publishes),
        "publish_share": statistics.median(publishes) / every,
    }


def measure_live(words: list[str], seconds: float, core: int, folder: Path, *, alone: bool) -> dict[str, float]:
    """A whole run with live actors; the learner has ``core`` to itself, and all other roles share the rest.

    With ``alone``, the threads that fetch its batches are kept off that core too.
    """
    command = [sys.executable, "-m", "worldloom_dist.launch", *words, "--run-dir", str(folder), "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        learner = _wait_for_learner(folder, process)
        _pin(process, learner, core, alone=alone)
        time.sleep(5.0)
        first = _next_line(folder, process)
        threads = _threads(learner)
        time.sleep(seconds)
        last = _next_line(folder, process)
        used = _used(threads, _threads(learner))
    finally:
        process.terminate()
        process.wait(120)
    phases = {key: last[key] - first.get(key, 0.0) for key in last if key.startswith("learner_seconds_total")}
    total = sum(phases.values()) or 1.0
    shares = {f"share_{key.partition('=')[2].rstrip('}')}": value / total for key, value in phases.items()}
    updates = last["train_steps"] - first["train_steps"]
    costs = {f"{name}_ms": 1000 * value / updates for name, value in used.items()}
    return {"updates_per_s": updates / (last["time"] - first["time"]), **costs, **shares}


def _threads(pid: int) -> dict[str, tuple[float, float]]:
    """Seconds of CPU, and seconds of waiting for a core, of each thread of a process."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            ran, waited, _ = (path / "schedstat").read_text().split()
            found[path.name] = (int(ran) / 1e9, int(waited) / 1e9)
    return found


def _used(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> dict[str, float]:
    """What happened between two looks; the training thread is the one that worked most."""
    zero = (0.0, 0.0)
    spent = [(after[name][0] - before.get(name, zero)[0], after[name][1] - before.get(name, zero)[1]) for name in after]
    spent.sort(reverse=True)
    others = sum(cpu for cpu, _ in spent[1:])
    return {"training_thread_cpu": spent[0][0], "training_thread_waited": spent[0][1], "other_threads_cpu": others}


def _pin(process: subprocess.Popen, learner: int, core: int, *, alone: bool) -> None:
    """Give every thread of the learner ``core`` (or, ``alone``, its training thread), and everything else the other cores."""
    others = os.sched_getaffinity(0) - {core} or {core}
    used = _threads(learner)
    training = max(used, key=lambda name: used[name])
    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        for thread in member.threads():
            is_there = member.pid == learner and (not alone or thread.id == int(training))
            os.sched_setaffinity(thread.id, {core} if is_there else others)


def _wait_for_learner(folder: Path, process: subprocess.Popen) -> int:
    """The learner's process, once its burst is over."""
    plan_burst = time.monotonic() + 300
    while time.monotonic() < plan_burst and process.poll() is None:
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        trained = [line for line in map(json.loads, lines) if line["kind"] == "train" and line["train_steps"] > 0]
        if len(trained) > 1:
            own = psutil.Process(process.pid).children(recursive=True)
            return next(p.pid for p in own if "LearnerRole" in " ".join(p.cmdline()))
        time.sleep(1.0)
    raise SystemExit("the run did not begin to train within 300 s")


def _next_line(folder: Path, process: subprocess.Popen) -> dict[str, float]:
    """The next line that the run writes."""
    former = _last_line(folder)["time"]
    while process.poll() is None:
        line = _last_line(folder)
        if line["time"] > former:
            return line
        time.sleep(0.05)
    raise SystemExit("the run ended")


def _last_line(folder: Path) -> dict[str, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found: dict[str, float] = [line for line in lines if line["kind"] == "train"][-1]
    return found


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="tdmpc2:ci")
    parser.add_argument("--env", default="gym:Pendulum-v1")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--label", default="")
    parser.add_argument("--no-live", action="store_true", help="leave the run on Ray out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    words = ["--preset", "quick", "--env", options.env, "--agent", options.agent, "--env-steps", "1000000", "--eval-episodes", "0"]
    words += ["--train-ratio", "20000", "--learner.threads", "1", "--agent.prefill-agent-steps", "500"]
    words += ["--agent.pretrain-updates", "1"] if options.agent.startswith("tdmpc2") else []  # no burst to wait for
    plan = resolve(parse(words))
    result: dict[str, object] = {"context": context(), "agent": options.agent, "env": options.env}
    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, {cores[-1]})
        staged = result["staged"] = measure_staged(plan, options.seconds / 3, Path(folder))
        if choose_device("auto") == "cuda":
            for mode in ("off", "graph"):
                own = resolve(parse([*words, "--learner.compile", mode]))
                result[f"cuda_{mode}"] = measure_staged(own, options.seconds / 3, Path(folder) / mode)
        os.sched_setaffinity(0, set(cores))
        if not options.no_live:
            for name, alone in (("live", False), ("live_training_thread_alone", True)):
                live = result[name] = measure_live(words, options.seconds, cores[-1], Path(folder) / name, alone=alone)
                result[f"{name}_over_staged"] = live["updates_per_s"] / staged["updates_per_s"]
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learner{'_' + options.label if options.label else ''}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
