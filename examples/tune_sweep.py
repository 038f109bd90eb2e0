"""Ray Tune over a run: each trial trains several seeds side by side, reports the mean of their
returns at every evaluation, and is ended early when others are ahead. Every seed is an ordinary run
folder: ``worldloom plot``, ``evaluate`` and ``report`` take it.

python examples/tune_sweep.py [ENV_STEPS]    # runs/sweep-TRIAL-seed1, ...
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from worldloom_dist.run.view import read_records

ENV_STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
EVAL_EVERY = max(100, ENV_STEPS // 5)
SEEDS = (1, 2)
RUNS = Path("runs").absolute()  # Tune changes the working directory


def trial(settings: dict[str, Any]) -> None:
    """Seeds of one setting; a report when all of them have made their next evaluation."""
    name = tune.get_context().get_trial_id()
    folders = [settings["runs"] / f"sweep-{name}-seed{seed}" for seed in SEEDS]
    with started(settings, folders) as processes:
        reported = 0
        while True:
            is_over = all(process.poll() is not None for process in processes)
            curves = [evaluations(folder) for folder in folders]
            for results in list(zip(*curves, strict=False))[reported:]:
                reported += 1
                tune.report(
                    {
                        "return": sum(result["return_mean"] for result in results) / len(results),
                        "env_steps": min(result["env_steps"] for result in results),
                    }
                )
            if is_over:
                break
            time.sleep(0.5)
        if any(process.returncode for process in processes):
            raise RuntimeError(f"a run failed; read console.log in {', '.join(map(str, folders))}")


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What a run has measured so far."""
    records = read_records(folder / "metrics.jsonl")
    return [record for record in records if record["kind"] == "eval"]


@contextlib.contextmanager
def started(settings: dict[str, Any], folders: list[Path]) -> Iterator[list[subprocess.Popen]]:
    """One process per seed; they are asked to stop, with a checkpoint, when the trial ends."""
    words = ["--preset", "debug", "--runtime", "local", "--metrics-port", "0"]
    words += ["--env-steps", str(settings["env_steps"]), "--eval-every", str(settings["every"])]
    words += ["--train-ratio", str(settings["train_ratio"]), "--if-exists", "resume"]
    command = [sys.executable, "-m", "worldloom_dist.launch", *words]
    processes = [
        subprocess.Popen(
            [*command, "--seed", str(seed), "--run-dir", str(folder)],
            start_new_session=True,  # so that it gets one signal, ours
        )
        for seed, folder in zip(SEEDS, folders, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    space = {
        "train_ratio": tune.grid_search([6.0, 24.0]),
        "env_steps": ENV_STEPS,
        "every": EVAL_EVERY,
        "runs": RUNS,
    }
    prunes = ASHAScheduler(
        time_attr="env_steps", max_t=ENV_STEPS, grace_period=EVAL_EVERY, reduction_factor=2
    )
    results = tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(metric="return", mode="max", scheduler=prunes),
    ).fit()
    best = results.get_best_result(scope="all")
    print("best", {"train_ratio": best.config["train_ratio"]}, best.metrics["return"])
    print(f"compare with: worldloom plot --table {RUNS}/sweep-*")
