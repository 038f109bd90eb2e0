"""Does the quick preset learn, and how surely: several seeds in the deterministic runtime, twenty
evaluation episodes each.

    python benchmarks/quick_seeds.py  # seeds 0-4; writes benchmarks/results/quick_seeds.json
    python benchmarks/quick_seeds.py --seeds 0 1 --env-steps 3000

One seed after the other, one thread each. A random policy has a return of about -1,200 on
Pendulum-v1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from context import context


def run_seed(seed: int, env_steps: int) -> dict[str, Any]:
    """Train one seed; returns its evaluations and how long it took."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        words = [
            "--preset",
            "quick",
            "--runtime",
            "local",
            "--seed",
            str(seed),
            "--env-steps",
            str(env_steps),
        ]
        words += ["--eval-every", "2500", "--learner.threads", "1", "--run-dir", str(folder)]
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "worldloom_dist.launch", *words],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.monotonic() - started
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [describe(line) for line in lines if line["kind"] == "eval"]
        updates = json.loads((folder / "summary.json").read_text())["train_steps"]
    return {
        "seed": seed,
        "wall_s": round(seconds, 1),
        "updates": updates,
        "evaluations": evaluations,
    }


def describe(line: dict[str, Any]) -> dict[str, Any]:
    """What the target speaks of: the median, and how many episodes reach -400."""
    returns = line["returns"]
    return {
        "env_steps": line["env_steps"],
        "median": round(statistics.median(returns), 1),
        "at_least_minus_400": sum(value >= -400 for value in returns),
        "returns": [round(value, 1) for value in returns],
    }


def main() -> None:
    """Train all seeds, print, store after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--env-steps", type=int, default=5000)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "quick_seeds.json"
    )
    options = parser.parse_args()
    result: dict[str, Any] = {**context(), "runs": []}
    for seed in options.seeds:
        result["runs"].append(run_seed(seed, options.env_steps))
        last = result["runs"][-1]
        shown = [
            (e["env_steps"], e["median"], e["at_least_minus_400"]) for e in last["evaluations"]
        ]
        print(
            f"seed {seed}: {last['wall_s']} s; (env steps, median, episodes >= -400): {shown}",
            flush=True,
        )
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
