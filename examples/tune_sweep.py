"""Ray Tune over ``RunConfig``: any field can be swept, because a run is a value.

python examples/tune_sweep.py [ENV_STEPS]
"""

import dataclasses
import sys
from pathlib import Path

from ray import tune

from worldloom_dist.launch import run
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS
from worldloom_dist.run.signals import StopFlag


def trial(settings):
    """One run, deterministic and in the trial's own process; its folder is the trial's."""
    config = dataclasses.replace(
        PRESETS["debug"](), runtime="local", env_steps=ENV_STEPS, **settings
    )
    folder = RunFolder(Path("run").absolute())
    run(resolve(config), folder, 0, StopFlag(), is_resumed=False)
    tune.report({"return": folder.read_json("summary.json")["eval"]["return_mean"]})


ENV_STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
if __name__ == "__main__":
    space = {"train_ratio": tune.grid_search([6.0, 24.0]), "seed": tune.grid_search([1, 2])}
    results = tune.Tuner(
        trial, param_space=space, tune_config=tune.TuneConfig(metric="return", mode="max")
    ).fit()
    print("best", results.get_best_result().config, results.get_best_result().metrics["return"])
