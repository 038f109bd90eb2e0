"""What the benchmarks of learning share: one run from the command line and its evaluations, files
that are whole or not there, and one plot per task.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from context import context

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "side_by_side", "train_all", "trained", "write"]

Result = TypeVar("Result")

MOST_WORDS = 4000
"""Characters of a failed run's output that are shown."""


def trained(what: str, words: Sequence[str]) -> dict[str, Any]:
    """Train through the command line, in a folder that goes away.

    Args:
        what: Names the run where it fails.
        words: Of ``worldloom train``, without ``--run-dir``.

    Returns:
        ``wall_s``, and ``evaluations``: ``env_steps``, ``median`` and ``returns`` of each, and in a
        run of several tasks ``tasks``: ``median`` and ``returns`` by the task's name.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "worldloom_dist.launch", *words, "--run-dir", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                f"{what}: the run ended with status {done.returncode}; its output "
                f"ends with\n{done.stdout[-MOST_WORDS:]}"
            )
        seconds = time.monotonic() - started
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "wall_s": round(seconds, 1),
        "evaluations": [_evaluation(line) for line in lines if line["kind"] == "eval"],
    }


def _evaluation(line: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"env_steps": line["env_steps"], **_returns(line)}
    if line.get("tasks"):
        found["tasks"] = {name: _returns(task) for name, task in line["tasks"].items()}
    return found


def _returns(of: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(of["returns"]), 1),
        "returns": [round(value, 1) for value in of["returns"]],
    }


def side_by_side(works: Iterable[Callable[[], Result]], jobs: int) -> Iterator[Result]:
    """What each returns, as it is done; at most ``jobs`` at a time. The first that fails keeps
    those that have not begun from beginning.
    """
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(work) for work in works]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_all(
    train: Callable[[str, int], dict[str, Any]],
    path: Path,
    agent: str,
    options: argparse.Namespace,
    tasks: Iterable[str],
    seeds: Iterable[int],
) -> dict[str, Any]:
    """Every task and seed; the file and its picture are written after each.

    Args:
        train: One run by task and seed.
        path: ``NAME_learn.json``; the picture beside it is ``NAME_curves.png``.
        agent: In the picture's titles.
        options: ``tasks`` and ``seeds``, None for all, then other runs of the file are kept;
            ``jobs``, runs at the same time; and ``before``, what the file says of its machine.
        tasks, seeds: All of them.
    """
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    is_part = options.tasks is not None or options.seeds is not None
    if is_part and path.exists():
        runs = {(run["task"], run["seed"]): run for run in json.loads(path.read_text())["runs"]}
    result: dict[str, Any] = {}

    def one(task: str, seed: int) -> dict[str, Any]:
        around = context()
        return {**train(task, seed), "context": around}

    wanted = itertools.product(options.tasks or tasks, options.seeds or seeds)
    works = [functools.partial(one, task, seed) for task, seed in wanted]
    for run in side_by_side(works, options.jobs):
        task = run["task"]
        seed = run["seed"]
        runs[task, seed] = run
        shown = [(e["env_steps"], e["median"]) for e in run["evaluations"]]
        print(f"{task} seed {seed}: {run['wall_s']} s; {shown}", flush=True)
        result = {"runs": [runs[key] for key in sorted(runs)]}
        write(path, {**options.before, **result})
        draw_curves(result["runs"], agent, path.with_name(f"{path.stem[:-6]}_curves.png"))
    return result


def draw_curves(runs: Sequence[Mapping[str, Any]], agent: str, path: Path) -> None:
    """One plot per task, one line per seed."""
    tasks = sorted({run["task"] for run in runs})
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4))
    for axis, task in zip(np.atleast_1d(axes), tasks, strict=True):
        for run in (run for run in runs if run["task"] == task):
            points = [(e["env_steps"], e["median"]) for e in run["evaluations"]]
            axis.plot(*zip(*points, strict=True), ".-", label=f"seed {run['seed']}")
        axis.set(title=f"{agent} on {task}", xlabel="env steps", ylabel="median of 20 returns")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(path: Path, result: Mapping[str, Any]) -> None:
    """The whole file or, if stopped, the one before."""
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(result, indent=1) + "\n")
    whole.replace(path)
