"""The learning curve of a finished run, from the rows in its journals: one line per training
episode, the evaluations, and a plot.

    python benchmarks/curve.py RUN_DIR NAME [--title "..."]  # writes benchmarks/results/NAME.jsonl
    and NAME.png

The first line of the file says where it comes from: agent, env, seed, command line and versions of
the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

from worldloom_dist.reproduce.record import run_records

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Read, write, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("name")
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    head, *records = run_records(options.run_dir)
    trained = [record for record in records if record["kind"] == "episode"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    with (RESULTS / f"{options.name}.jsonl").open("w") as file:
        for record in (head, *trained, *evaluations):
            file.write(json.dumps(record) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4))
    acted = [e for e in trained if e["updates_of_policy"]]
    axes.plot(
        [e["env_steps"] for e in trained],
        [e["return"] for e in trained],
        ".",
        color="0.7",
        label="random episodes",
    )
    axes.plot(
        [e["env_steps"] for e in acted],
        [e["return"] for e in acted],
        ".-",
        color="C0",
        label="training episodes",
    )
    for e in evaluations:
        axes.plot([e["env_steps"]] * len(e["returns"]), e["returns"], "x", color="C3")
    axes.plot([], [], "x", color="C3", label="evaluation episodes")
    axes.set(xlabel="env steps", ylabel="return")
    axes.set_title(
        options.title or f"{head['agent']} on {head['env']}, seed {head['seed']}", fontsize=10
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"{options.name}.png", dpi=110)
    print(
        f"{len(trained)} training episodes, {len(evaluations)} evaluations -> "
        f"{RESULTS / options.name}.jsonl, .png"
    )


if __name__ == "__main__":
    main()
