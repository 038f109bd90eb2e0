"""Four small tasks of the DeepMind Control Suite learnt by one TD-MPC2 agent in one run, and each
by an agent of its own.

    python benchmarks/several_tasks.py              # benchmarks/results/several_tasks.json, .png
    python benchmarks/several_tasks.py --jobs 2     # two runs at a time
    python benchmarks/several_tasks.py --kinds long # these runs; the others of the file are kept

A task has as many env steps together with the others as alone. In runs of the kinds ``together``
and ``alone`` there is one update per agent step: the one run of four tasks makes as many updates as
the four single runs together. A run of the kind ``long`` is of one task and makes as many updates
as the run of four, four per agent step. Env workers, agent (``tdmpc2:ci``), batch and prefill per
task are the same. One thread each, in the deterministic runtime, so only returns count, however
busy the machine is.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from context import context
from learning import side_by_side, trained, write

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = ("cartpole-swingup", "cup-catch", "finger-spin", "pendulum-swingup")
AGENT = "tdmpc2:ci"
ENV_STEPS = 20_000
"""Of each task; a decision is two."""
EVALUATIONS = 5
PREFILL = 1000
"""Random decisions of each task before the first update, and as many updates then."""
TRAIN_RATIO = 384
"""One update per agent step: windows of a batch times their steps."""
KINDS = {
    "together": "one agent for all four",
    "alone": "alone",
    "long": "alone, with four times the updates",
}
LINES = {"together": ".-", "alone": ".--", "long": ".:"}
WORDS = f"--agent {AGENT} --runtime local --workers 4 --learner.threads 1 --metrics-port 0"
WORDS += " --eval-videos 0 --eval-model False"


def train(
    kind: str, tasks: Sequence[str], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One run.

    Args:
        kind: One of :data:`KINDS`.
        tasks: One or several.
        seed: Of the run.
        options: ``env_steps`` of each task, ``episodes`` of each task in an evaluation.
    """
    around = context()
    steps = options.env_steps * len(tasks)
    words = f"{WORDS} --env {','.join(f'dmc:{task}' for task in tasks)} --seed {seed}"
    words += f" --env-steps {steps} --eval-every {steps // EVALUATIONS}"
    words += (
        f" --eval-episodes {options.episodes} --agent.prefill-agent-steps {PREFILL * len(tasks)}"
    )
    if kind == "long":
        words += f" --train-ratio {len(TASKS) * TRAIN_RATIO}"
        words += f" --agent.pretrain-updates {len(TASKS) * PREFILL}"
    found = trained(f"{', '.join(tasks)} seed {seed}", words.split())
    run = {"kind": kind, "tasks": list(tasks), "seed": seed, "words": words, **found}
    return run | {"context": around}


def curve(run: Mapping[str, Any], task: str) -> tuple[list[float], list[float]]:
    """Env steps of the task itself, and the medians of its evaluation episodes."""
    tasks = len(run["tasks"])
    places = [one["env_steps"] / tasks for one in run["evaluations"]]
    medians = [one.get("tasks", {task: one})[task]["median"] for one in run["evaluations"]]
    return places, medians


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A plot per task: the run of all, and its own."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(4 * len(TASKS), 3.8), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for run in (run for run in runs if task in run["tasks"]):
            label = f"{KINDS[run['kind']]}, seed {run['seed']}"
            axis.plot(*curve(run, task), LINES[run["kind"]], label=label)
        axis.set(title=task, xlabel="env steps of this task", ylim=(-20, 1020))
    lines = {line.get_label(): line for axis in axes for line in axis.lines}
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=len(lines), frameon=False)
    axes[0].set_ylabel("median return of the evaluation")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train all, print, store after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--env-steps", type=int, default=ENV_STEPS, help="of each task")
    parser.add_argument("--episodes", type=int, default=5, help="of each task in an evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all, a new file")
    parser.add_argument("--output", type=Path, default=RESULTS / "several_tasks.json")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if options.kinds and options.output.exists():
        runs = json.loads(options.output.read_text())["runs"]
        replaced = {(kind, seed) for kind in options.kinds for seed in options.seeds}
        runs = [run for run in runs if (run["kind"], run["seed"]) not in replaced]
    before = {**context(), "agent": AGENT, "env_steps": options.env_steps}
    works = [
        functools.partial(train, kind, tasks, seed, options)
        for seed in options.seeds
        for kind in options.kinds or KINDS
        for tasks in ([TASKS] if kind == "together" else [(task,) for task in TASKS])
    ]
    for run in side_by_side(works, options.jobs):
        runs.append(run)
        shown = {task: curve(run, task)[1] for task in run["tasks"]}
        print(f"{run['kind']} seed {run['seed']}: {run['wall_s']} s; {shown}", flush=True)
        write(options.output, {**before, "runs": runs})
        draw(runs, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
