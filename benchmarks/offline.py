"""What rows of a half-trained run are worth to a new one: Pendulum with ``tdmpc2:ci``, online
alone, and begun offline on these rows with batches mixed of both.

    python benchmarks/offline.py                # seeds 0-2; benchmarks/results/offline.json, .png
    python benchmarks/offline.py --seeds 0 --env-steps 3000 --jobs 1

Both have the same env steps; the one with data makes ``--offline-steps`` updates more. One thread
each, in the deterministic runtime, so only returns count, however busy the machine is. A random
policy has a return of about -1,200.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from context import context
from learning import side_by_side, write

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
DATA_SEED = 100
DATA_STEPS = 800
"""The run that the rows come from: half random, half of a policy that learns the task."""
PREFILL = 300
BATCH = 64
"""Small, so that a run takes a minute of one core."""
OFFLINE_STEPS = 600
SHARE = "0.5:0.1@1200"
MOST_WORDS = 4000


def command(*words: str) -> None:
    """A command of the library, with its last words when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{(done.stdout + done.stderr)[-MOST_WORDS:]}")


def train(folder: Path, seed: int, env_steps: int, *words: str) -> None:
    """One run of ``quick``."""
    command(
        *("worldloom_dist.launch", "--preset", "quick", "--runtime", "local"),
        *("--seed", str(seed), "--env-steps", str(env_steps), "--run-dir", str(folder)),
        *("--metrics-port", "0", "--learner.threads", "1"),
        *("--agent.prefill-agent-steps", str(PREFILL), "--agent.batch-size", str(BATCH), *words),
    )


def run_seed(variant: str, seed: int, env_steps: int, rows: Path) -> dict[str, Any]:
    """Train one seed; returns its evaluations."""
    words = ["--eval-every", "300", "--eval-episodes", "5"]
    if variant == "offline":
        words += ["--replay.load", str(rows), "--offline-steps", str(OFFLINE_STEPS)]
        words += ["--replay.offline-share", SHARE]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        train(folder, seed, env_steps, *words)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
    return {
        "variant": variant,
        "seed": seed,
        "updates": summary["train_steps"],
        "evaluations": [
            {
                "env_steps": line["env_steps"],
                "mean": round(statistics.fmean(line["returns"]), 1),
                "returns": [round(value, 1) for value in line["returns"]],
            }
            for line in lines
            if line["kind"] == "eval"
        ],
    }


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Mean over seeds, and the seeds thin behind it."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    labels = {
        "online": "online only",
        "offline": f"{OFFLINE_STEPS:,} updates on the rows first, then batches mixed {SHARE}",
    }
    for (variant, label), colour in zip(labels.items(), ("tab:gray", "tab:blue"), strict=True):
        points: dict[int, list[float]] = {}
        for run in runs:
            if run["variant"] != variant:
                continue
            places = [one["env_steps"] for one in run["evaluations"]]
            means = [one["mean"] for one in run["evaluations"]]
            axes.plot(places, means, color=colour, alpha=0.3, linewidth=1)
            for place, mean in zip(places, means, strict=True):
                points.setdefault(place, []).append(mean)
        steps = sorted(points)
        axes.plot(steps, [np.mean(points[step]) for step in steps], color=colour, label=label)
    axes.set_xlabel("env steps")
    axes.set_ylabel("return of 5 evaluation episodes")
    axes.set_title("Pendulum-v1, tdmpc2:ci, rows of a half-trained run")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Make the rows, train all seeds in both ways, print, store after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=1200)
    parser.add_argument("--jobs", type=int, default=3, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=RESULTS / "offline.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        **context(),
        "data": {"seed": DATA_SEED, "env_steps": DATA_STEPS},
        "prefill_agent_steps": PREFILL,
        "batch_size": BATCH,
        "offline_steps": OFFLINE_STEPS,
        "offline_share": SHARE,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "half"
        rows = Path(temporary) / "rows.npz"
        train(folder, DATA_SEED, DATA_STEPS, "--eval-every", "0", "--eval-episodes", "10")
        summary = json.loads((folder / "summary.json").read_text())
        result["data"]["eval_return_mean"] = round(summary["eval"]["return_mean"], 1)
        result["data"]["train_return_mean"] = round(summary["train_return_mean"], 1)
        command("worldloom_dist.replay", "export", str(folder), str(rows))
        print(f"data: {result['data']}", flush=True)
        works = [
            functools.partial(run_seed, variant, seed, options.env_steps, rows)
            for seed in options.seeds
            for variant in ("online", "offline")
        ]
        for run in side_by_side(works, options.jobs):
            result["runs"].append(run)
            shown = [(one["env_steps"], one["mean"]) for one in run["evaluations"]]
            print(f"{run['variant']} seed {run['seed']}: {shown}", flush=True)
            write(options.output, result)
            draw(result["runs"], options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
