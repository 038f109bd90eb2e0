"""How well the learner is fed, and what publishing and checkpoints cost it.

    OMP_NUM_THREADS=1 python benchmarks/learner.py [--agent tdmpc2:ci] [--seconds 60] [--label NAME]

* ``staged``: updates/s of the learner alone on one batch that is ready in memory, pinned to one
  core;
* ``live``: updates/s of a run on Ray with live actors that always owe training something (a high
  train ratio), after its pretraining, with the share of the training thread's time by phase, and
  what an update takes of the learner's core: CPU of the training thread, CPU of the process's other
  threads (prefetcher, Ray), and how long the training thread waited for the core; once with the
  whole learner process on a core of its own, and once with the training thread alone there;
* ``checkpoint``: how long the training thread stands still for one, and ``publish`` likewise.

A machine that is shared gets faster and slower within minutes. So live and staged take turns on the
same core: the run trains for a while, then all of its processes are stopped (SIGSTOP) while the
learner alone trains for as long, and so on; ``live_over_staged`` is the ratio over all turns,
``live_over_staged_in_turns`` that of each.

With CUDA there are also milliseconds per update with and without a captured graph. Writes
benchmarks/results/learner[_LABEL].json.
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from context import context

from worldloom.core.devices import resolve_device
from worldloom.data.windows import SampledWindows
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.learner.checkpointing import CheckpointWriter
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.run.builders import build_learner
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.runtime.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"


def random_windows(plan: Plan) -> SampledWindows:
    """One batch of noise of the right shape, as from the object store: read-only."""
    rng = np.random.default_rng(0)
    sampling = plan.spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {}
    for name, spec in plan.columns.items():
        shape = (*lead, *spec.shape)
        columns[name] = (
            rng.normal(size=shape).astype(spec.dtype)
            if spec.dtype.startswith("float")
            else np.zeros(shape, spec.dtype)
        )
        columns[name].flags.writeable = False
    zeros = np.zeros(lead[0], np.int64)
    return SampledWindows(
        columns,
        np.arange(lead[0] * lead[1]).reshape(lead),
        zeros,
        zeros,
        np.full(lead[0], time.time()),
    )


class Staged:
    """The learner alone, on one batch that is ready in memory.

    Attributes:
        updates, seconds, cpu_s: What it did since it was made, or was reset.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._device = resolve_device(plan.config.learner.device)
        self.learner = build_learner(
            plan, WeightStore(), device=self._device, incarnation=1, folder=folder
        )
        self._windows = random_windows(plan)
        self._folder = folder
        self._every_s = plan.config.learner.publish_every_s
        for _ in range(8):
            self.update()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.updates = 0
        self.seconds = 0.0
        self.cpu_s = 0.0

    def update(self) -> None:
        """One, whole."""
        self.learner.train(self._windows)
        _wait(self._device)

    def run(self, seconds: float) -> float:
        """Train for so long; returns updates/s."""
        count = 0
        began = time.monotonic()
        busy = time.thread_time()
        while time.monotonic() - began < seconds:
            self.learner.train(self._windows)
            count += 1
        _wait(self._device)
        took = time.monotonic() - began
        self.updates = self.updates + count
        self.seconds = self.seconds + took
        self.cpu_s = self.cpu_s + time.thread_time() - busy
        return count / took

    def report(self) -> dict[str, float]:
        """Per update."""
        return {
            "updates_per_s": self.updates / self.seconds,
            "ms_per_update": 1000 * self.seconds / self.updates,
            "training_thread_cpu_ms": 1000 * self.cpu_s / self.updates,
        }

    def stalls(self) -> dict[str, float]:
        """What publishing and a checkpoint cost the training thread."""
        writer = CheckpointWriter(CheckpointStore(self._folder / "checkpoints"))
        stalls = []
        publishes = []
        for _ in range(5):
            self.update()
            while not writer.is_idle:
                time.sleep(0.01)
            began = time.monotonic()
            self.learner.publish()  # while no checkpoint is written, as nearly always
            publishes.append(time.monotonic() - began)
            began = time.monotonic()
            writer.save(self.learner.train_steps, {"learner": self.learner.state_dict()}, {})
            stalls.append(time.monotonic() - began)
        writer.close()
        return {
            "checkpoint_stall_ms_median": 1000 * statistics.median(stalls),
            "checkpoint_stall_ms_max": 1000 * max(stalls),
            "publish_ms_median": 1000 * statistics.median(publishes),
            "publish_share": statistics.median(publishes) / self._every_s,
        }


def measure_live(
    words: list[str], staged: Staged, seconds: float, turns: int, folder: Path, *, alone: bool
) -> dict[str, object]:
    """A whole run with live actors, in turns with the learner alone on the core that this process
    is pinned to.

    The learner of the run has that core to itself, and all other roles share the rest; with
    ``alone``, the threads that fetch its batches are kept off that core too.
    """
    (core,) = os.sched_getaffinity(0)
    command = [
        sys.executable,
        "-m",
        "worldloom_dist.launch",
        *words,
        "--run-dir",
        str(folder),
        "--metrics-port",
        "0",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, preexec_fn=_anywhere
    )
    spent: Counter[str] = Counter()
    ratios: list[float] = []
    staged.reset()
    try:
        learner = _wait_for_learner(folder, process)
        _pin(process, learner, core, alone=alone)
        time.sleep(5.0)
        for _ in range(turns):
            turn = _turn(folder, process, learner, seconds / turns)
            spent.update(turn)
            with _stopped(process):
                ratios.append(turn["updates"] / turn["seconds"] / staged.run(seconds / turns))
            time.sleep(1.0)
    finally:
        process.terminate()
        process.wait(120)
    rate = spent["updates"] / spent["seconds"]
    reference = staged.report()
    total = sum(value for name, value in spent.items() if name.startswith("share_"))
    shares = {name: value / total for name, value in spent.items() if name.startswith("share_")}
    costs = {
        f"{name}_ms": 1000 * value / spent["updates"]
        for name, value in spent.items()
        if name.endswith(("cpu", "waited"))
    }
    over = {
        "live_over_staged": rate / reference["updates_per_s"],
        "live_over_staged_in_turns": ratios,
    }
    return {"updates_per_s": rate, **over, **costs, **shares, "staged": reference}


def _anywhere() -> None:
    """The run may use every core until its processes are told where to be."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _turn(
    folder: Path, process: subprocess.Popen, learner: int, seconds: float
) -> dict[str, float]:
    """What the run's learner did for so long: updates, seconds by phase, seconds of its threads."""
    first = _next_line(folder, process)
    threads = _threads(learner)
    time.sleep(seconds)
    last = _next_line(folder, process)
    found = _used(threads, _threads(learner)) | {
        "updates": last["train_steps"] - first["train_steps"]
    }
    for key in last:
        if key.startswith("learner_seconds_total"):
            found[f"share_{key.partition('=')[2].rstrip('}')}"] = last[key] - first.get(key, 0.0)
    return found | {"seconds": last["time"] - first["time"]}


@contextlib.contextmanager
def _stopped(process: subprocess.Popen) -> Iterator[None]:
    """All processes of the run stand still; they are told to go on whatever happens."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    try:
        _each(family, "suspend")
        yield
    finally:
        _each(family, "resume")


def _each(family: list[psutil.Process], action: str) -> None:
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(member, action)()


def _threads(pid: int) -> dict[str, tuple[float, float]]:
    """Seconds of CPU, and seconds of waiting for a core, of each thread of a process."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            ran, waited, _ = (path / "schedstat").read_text().split()
            found[path.name] = (int(ran) / 1e9, int(waited) / 1e9)
    return found


def _used(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """What happened between two looks; the training thread is the one that worked most."""
    zero = (0.0, 0.0)
    spent = [
        (after[name][0] - before.get(name, zero)[0], after[name][1] - before.get(name, zero)[1])
        for name in after
    ]
    spent.sort(reverse=True)
    others = sum(cpu for cpu, _ in spent[1:])
    return {
        "training_thread_cpu": spent[0][0],
        "training_thread_waited": spent[0][1],
        "other_threads_cpu": others,
    }


def _pin(process: subprocess.Popen, learner: int, core: int, *, alone: bool) -> None:
    """Give every thread of the learner ``core`` (or, ``alone``, its training thread), and
    everything else the other cores.
    """
    others = set(range(os.cpu_count() or 1)) - {core} or {core}
    used = _threads(learner)
    training = max(used, key=lambda name: used[name])
    for member in [
        psutil.Process(process.pid),
        *psutil.Process(process.pid).children(recursive=True),
    ]:
        for thread in member.threads():
            is_there = member.pid == learner and (not alone or thread.id == int(training))
            os.sched_setaffinity(thread.id, {core} if is_there else others)


def _wait_for_learner(folder: Path, process: subprocess.Popen) -> int:
    """The learner's process, once its pretraining is over."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        lines = (
            (folder / "metrics.jsonl").read_text().splitlines()
            if (folder / "metrics.jsonl").exists()
            else []
        )
        trained = [
            line
            for line in map(json.loads, lines)
            if line["kind"] == "train" and line["train_steps"] > 0
        ]
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agent", default="tdmpc2:ci")
    parser.add_argument("--env", default="gym:Pendulum-v1")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--label", default="")
    parser.add_argument("--no-live", action="store_true", help="leave the run on Ray out")
    parser.add_argument(
        "--turns", type=int, default=6, help="how often a run and the learner alone take turns"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(is_training=True)  # as the learner of a run does
    cores = sorted(os.sched_getaffinity(0))
    words = [
        "--preset",
        "quick",
        "--env",
        options.env,
        "--agent",
        options.agent,
        "--env-steps",
        "1000000",
        "--eval-episodes",
        "0",
    ]
    words += [
        "--train-ratio",
        "20000",
        "--learner.threads",
        "1",
        "--agent.prefill-agent-steps",
        "500",
    ]
    # no pretraining to wait for
    words += ["--agent.pretrain-updates", "1"] if options.agent.startswith("tdmpc2") else []
    plan = resolve(parse(words))
    result: dict[str, object] = {"context": context(), "agent": options.agent, "env": options.env}
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as folder:
        staged = Staged(plan, Path(folder))
        staged.run(options.seconds / 3)
        result["staged"] = staged.report() | staged.stalls()
        if resolve_device("auto") == "cuda":
            for mode in ("off", "graph"):
                own = Staged(
                    resolve(parse([*words, "--learner.compile", mode])), Path(folder) / mode
                )
                own.run(options.seconds / 3)
                result[f"cuda_{mode}"] = own.report()
        if not options.no_live:
            for name, alone in (("live", False), ("live_training_thread_alone", True)):
                result[name] = measure_live(
                    words, staged, options.seconds, options.turns, Path(folder) / name, alone=alone
                )
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learner{'_' + options.label if options.label else ''}.json").write_text(
        text + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
