"""What the benchmarks of learning share: one run from the command line and its evaluations, files
that are whole or not there, and one plot per task.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from context import context

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "train_all", "trained", "write"]

MOST_WORDS = 4000
"""Characters of a failed run's output that are shown."""


def trained(what: str, words: Sequence[str]) -> dict[str, Any]:
    """Train through the command line, in a folder that goes away.

    Args:
        what: Names the run where it fails.
        words: Of ``worldloom train``, without ``--run-dir``.

    Returns:
        ``wall_s``, and ``evaluations``: ``env_steps``, ``median`` and ``returns`` of each.
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
        "evaluations": [
            {
                "env_steps": line["env_steps"],
                "median": round(statistics.median(line["returns"]), 1),
                "returns": [round(value, 1) for value in line["returns"]],
            }
            for line in lines
            if line["kind"] == "eval"
        ],
    }


def train_all(
    train: Callable[[str, int], dict[str, Any]],
    path: Path,
    agent: str,
    options: argparse.Namespace,
    tasks: Iterable[str],
    seeds: Iterable[int],
) -> dict[str, Any]:
    """Every task and seed, one after the other; the file and its picture are written after each.

    Args:
        train: One run by task and seed.
        path: ``NAME_learn.json``; the picture beside it is ``NAME_curves.png``.
        agent: In the picture's titles.
        options: ``tasks`` and ``seeds``, None for all, then other runs of the file are kept; and
            ``before``, what the file says of its machine.
        tasks, seeds: All of them.
    """
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    is_part = options.tasks is not None or options.seeds is not None
    if is_part and path.exists():
        runs = {(run["task"], run["seed"]): run for run in json.loads(path.read_text())["runs"]}
    result: dict[str, Any] = {}
    for task in options.tasks or tasks:
        for seed in options.seeds or seeds:
            around = context()
            run = train(task, seed)
            runs[task, seed] = {**run, "context": around}
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
