"""``python -m worldloom_dist.plot RUN_DIR...``: return, losses and throughput of runs as one
picture.

Runs of the same agent on the same env are seeds of one experiment: their curves become the
interquartile mean over seeds (Agarwal et al., arXiv:2108.13264: the mean of the middle half, which
one lucky seed cannot pull up) and a band from the 25th to the 75th percentile. A single run is
drawn as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.json_text import read_object
from worldloom_dist.run.view import read_records

__all__ = ["Curve", "Run", "combine", "iqm", "main", "plot_runs", "read_run"]

MAX_LOSSES = 8
GRID_POINTS = 200
ENV_STEPS = "env steps"
UPDATES = "updates"
"""What curves are over."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over env steps or updates; ``low`` and ``high`` are the band over seeds, None for
    a single run. All ``[n]`` float64.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its experiment (agent and env), its folder's name, curves by name, and what they are
    over: updates where there is no env.
    """

    experiment: str
    name: str
    curves: Mapping[str, Curve]
    axis: str = ENV_STEPS


def read_run(folder: Path) -> Run:
    """The curves of a run, resumed parts in order.

    Raises:
        ConfigurationError: If the folder holds no run, or one that has written no metrics yet.
    """
    try:
        run = read_object(folder / "config.json")["run"]
        is_offline = run["env"]["env"] == "none"
        where = f"{run['replay']['load']}, offline" if is_offline else run["env"]["env"]
        experiment = f"{run['agent']} on {where}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{folder} holds no run ({type(error).__name__}); give a folder that a run writes to"
        ) from error
    points: dict[str, dict[float, float]] = {}
    for record in read_records(folder / "metrics.jsonl"):
        steps = record.get("train_steps" if is_offline else "env_steps")
        for name, value in _numbers(record).items():
            # null: it was not finite
            if isinstance(steps, int | float) and isinstance(value, int | float):
                points.setdefault(name, {})[float(steps)] = float(value)
    if not points:
        raise ConfigurationError(
            f"{folder} has no metrics yet; a run writes the first ones after about ten seconds"
        )
    curves = {
        name: Curve(*(np.array(axis) for axis in zip(*sorted(found.items()), strict=True)))
        for name, found in points.items()
    }
    return Run(experiment, folder.name, curves, UPDATES if is_offline else ENV_STEPS)


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("kind") == "eval":
        return {"eval": record.get("return_mean")}
    wanted = {
        "episode_return_mean{split=train}": "train",
        "env_steps_per_s": "env steps/s",
        "updates_per_s": "updates/s",
    }
    found = {name: record[key] for key, name in wanted.items() if key in record}
    return found | {key: value for key, value in record.items() if key.startswith("loss{")}


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over axis 0: the mean of the middle half, with parts of a value where a
    quarter is no whole number.

    Args:
        values: ``[seeds, ...]``.

    Returns:
        ``[...]``.
    """
    count = len(values)
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    result: np.ndarray = np.tensordot(weights / weights.sum(), np.sort(values, axis=0), axes=1)
    return result


def combine(curves: Sequence[Curve]) -> Curve:
    """Several seeds as one curve with a band, over the steps that all of them have reached; linear
    between points.
    """
    if len(curves) == 1:
        return curves[0]
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    if last < first:  # they share no step: a seed has only just begun
        return max(curves, key=lambda curve: len(curve.steps))
    own = np.unique(np.concatenate([curve.steps for curve in curves]))
    grid = own[(own >= first) & (own <= last)]
    grid = grid if len(grid) <= GRID_POINTS else np.linspace(first, last, GRID_POINTS)
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])
    low, high = np.percentile(values, [25, 75], axis=0)
    return Curve(grid, iqm(values), low, high)


def plot_runs(runs: Sequence[Run], path: Path, title: str = "") -> None:
    """Draw runs into a picture; its format follows from the file's ending.

    Raises:
        MissingDependencyError: If matplotlib is missing.
        ConfigurationError: If the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots", "matplotlib", "viz") from error
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (returns, losses), (speed, updates) = figure.subplots(2, 2)
    experiments: dict[str, list[Run]] = {}
    for run in runs:
        experiments.setdefault(run.experiment, []).append(run)
    for index, (name, members) in enumerate(experiments.items()):
        colour = f"C{index % 10}"
        label = name if len(members) == 1 else f"{name} (IQM of {len(members)} seeds)"
        _draw(returns, members, "train", colour, f"{label}: training", alpha=0.45)
        _draw(returns, members, "eval", colour, f"{label}: evaluation", marker="o", markersize=3)
        _draw(speed, members, "env steps/s", colour, label)
        _draw(updates, members, "updates/s", colour, label)
    _draw_losses(losses, experiments)
    axis = ", or ".join(sorted({run.axis for run in runs}))
    for axes, what in (
        (returns, "return"),
        (losses, "losses"),
        (speed, "env steps/s"),
        (updates, "updates/s"),
    ):
        axes.set(xlabel=axis, title=what)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.suptitle(title or ", ".join(experiments))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"output: {path} cannot be written ({error})") from error


def _draw(
    axes: Any, members: Sequence[Run], name: str, colour: str, label: str, **style: Any
) -> None:
    curves = [run.curves[name] for run in members if name in run.curves]
    if not curves:
        return
    curve = combine(curves)
    axes.plot(curve.steps, curve.values, color=colour, label=label, **style)
    if curve.low is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def _draw_losses(axes: Any, experiments: Mapping[str, Sequence[Run]]) -> None:
    """Every loss of a single experiment, the total of several; scales differ, so the axis is
    logarithmic about 0.
    """
    axes.set_yscale("symlog", linthresh=1e-2)
    for index, (experiment, members) in enumerate(experiments.items()):
        names = sorted({name for run in members for name in run.curves if name.startswith("loss{")})
        if len(experiments) > 1:
            names = [name for name in names if name == "loss{name=total}"]
        for place, name in enumerate(names[:MAX_LOSSES]):
            short = name.removeprefix("loss{name=").rstrip("}")
            label = short if len(experiments) == 1 else f"{experiment}: {short}"
            _draw(
                axes,
                members,
                name,
                f"C{(index if len(experiments) > 1 else place) % 10}",
                label,
                linewidth=1,
            )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m worldloom_dist.plot", description="Return, losses and throughput of runs."
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        nargs="+",
        help="run folders; those of one agent and env are taken as seeds",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=None,
        help="PNG, PDF or SVG (default: plot.png in the first folder)",
    )
    parser.add_argument("--title", default="", help="of the picture")
    options = parser.parse_args(words)
    path = options.output or options.run_dir[0] / "plot.png"
    try:
        plot_runs([read_run(folder) for folder in options.run_dir], path, options.title)
    except (ConfigurationError, MissingDependencyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
