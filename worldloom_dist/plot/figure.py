"""The picture of runs: return by env, then losses and throughput where all runs share one env.

A colour is an experiment, everywhere on the picture; a published curve is grey and dashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.plot.reference import Published, task_key
from worldloom_dist.plot.runs import Experiment, Run, combine, experiments_of
from worldloom_dist.plot.style import STYLES, Style, check_drawing, dress, rules
from worldloom_dist.run.curves import EVALUATION, RATES, TRAINING

__all__ = ["plot_runs"]

COLUMNS = 3
LOSS_COLUMNS = 4
LEGEND_CHARS = 150
"""That fit in a line of a legend."""
LOG_SPAN = 50.0
"""A positive quantity that spans more than this factor is drawn on a logarithmic axis."""
DPI = 150
LOSS_TITLE_CHARS = 104
"""That fit above a row of losses."""
MOST_SEED_LINES = 20
MOST_MARKERS = 40
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)))


def plot_runs(
    runs: Sequence[Run],
    path: Path,
    title: str = "",
    *,
    axis: str | None = None,
    references: Sequence[Published] = (),
    style: str = "light",
) -> None:
    """Draw runs into a picture; its format follows from the file's ending.

    Args:
        runs: Those that differ in their seed alone are drawn as one.
        path: The picture.
        title: Above it.
        axis: A key of :data:`worldloom_dist.run.curves.AXES`; by default env steps, and updates
            where there is no env.
        references: Published curves, drawn where a run plays their task.
        style: A key of :data:`STYLES`.

    Raises:
        MissingDependencyError: If matplotlib is missing.
        ConfigurationError: If the file cannot be written, or no run plays the task of a reference.
    """
    check_drawing(path)
    import matplotlib as mpl

    envs = experiments_of(runs)
    _check_references(envs, references, axis)
    look = STYLES[style]
    settings: Any = rules(look)
    with mpl.rc_context(settings):
        figure = _figure(envs, title, axis, references, look)
        try:
            figure.savefig(path, dpi=DPI)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"output: {path} cannot be written ({error})") from error


def _figure(
    envs: Mapping[str, Sequence[Experiment]],
    title: str,
    axis: str | None,
    references: Sequence[Published],
    look: Style,
) -> Any:
    from matplotlib.figure import Figure

    colours = _colours(envs, look)
    acting = {env: found for env, found in envs.items() if not found[0].runs[0].is_offline}
    alone = next(iter(envs.values())) if len(envs) == 1 else []
    losses = _losses_of(alone)
    columns = min(COLUMNS, max(1, len(acting)))
    return_rows = math.ceil(len(acting) / columns)
    loss_rows = math.ceil(len(losses) / LOSS_COLUMNS)
    loss_columns = math.ceil(len(losses) / loss_rows) if losses else 0
    heights = [3.0 * return_rows + 0.5] if acting else []
    heights += [1.9 * loss_rows + 0.3] if losses else []
    heights += [2.3] if alone else []
    figure = Figure(figsize=(11, sum(heights) + 0.7), layout="constrained")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel())
    if acting:
        part = next(parts)
        grid = _grid(part, return_rows, columns, len(acting))
        for axes, (env, experiments) in zip(grid, acting.items(), strict=True):
            drawn = _fitting(references, env, experiments)
            _draw_returns(axes, env, experiments, axis, colours, drawn, look)
        _add_legend(part, grid)
    if losses:
        grid = _grid(next(parts), loss_rows, loss_columns, len(losses))
        for place, name in enumerate(losses):
            is_lowest = place + loss_columns >= len(losses)
            _draw_quantity(grid[place], alone, name, axis, colours, has_label=is_lowest)
            short = name.removeprefix("loss{name=").rstrip("}")
            room = LOSS_TITLE_CHARS // loss_columns
            shown = short if len(short) <= room else short[: room - 3] + "..."
            grid[place].set_title(f"loss: {shown}" if len(shown) < room - 6 else shown)
    if alone:
        rates = [n for n in RATES.values() if acting or n != RATES["env_steps_per_s"]]
        grid = _grid(next(parts), 1, len(rates), len(rates))
        for axes, name in zip(grid, rates, strict=True):
            _draw_quantity(axes, alone, name, axis, colours, may_be_log=False)
            axes.set_ylim(bottom=0)
            axes.set_title(name)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    _note(
        figure, envs, [r for env, es in envs.items() for r in _fitting(references, env, es)], look
    )
    return figure


def _grid(part: Any, rows: int, columns: int, wanted: int) -> Sequence[Any]:
    """The wanted axes of a grid, row by row; the others are hidden."""
    grid = part.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[wanted:]:
        axes.set_axis_off()
    found: Sequence[Any] = grid[:wanted]
    return found


def _add_legend(part: Any, grid: Sequence[Any]) -> None:
    """One for all panels, below them, where it hides no curve."""
    found: dict[str, Any] = {}
    for axes in grid:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        columns = max(1, min(len(found), LEGEND_CHARS // (max(map(len, found)) + 8)))
        part.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False
        )


def _draw_returns(
    axes: Any,
    env: str,
    experiments: Sequence[Experiment],
    axis: str | None,
    colours: Mapping[str, str],
    references: Sequence[Published],
    look: Style,
) -> None:
    for number, reference in enumerate(references):
        _draw_reference(axes, reference, number, look)
    ends = [0.0]
    for experiment in experiments:
        ends.append(_draw_experiment(axes, experiment, axis, colours[experiment.label]))
    axes.set_title(env)
    axes.set_ylabel("return")
    if references and max(ends) > 0:  # a published curve may be ten times as long
        axes.set_xlim(-0.02 * max(ends), 1.03 * max(ends))
    dress(axes, _axis_of(experiments, axis))
    if not axes.get_legend_handles_labels()[0]:
        says = "no episode has ended yet"
        axes.text(0.5, 0.5, says, transform=axes.transAxes, ha="center", color=look.soft)


def _draw_reference(axes: Any, reference: Published, number: int, look: Style) -> None:
    curve = reference.curve
    axes.plot(
        curve.steps,
        curve.values,
        color=look.soft,
        linestyle=DASHES[number % len(DASHES)],
        marker="os^D"[number % 4],
        markersize=3,
        linewidth=1.3,
        label=reference.label,
        zorder=1,
    )
    if curve.low is not None and curve.high is not None:
        known = np.isfinite(curve.low)
        band = (curve.steps[known], curve.low[known], curve.high[known])
        axes.fill_between(*band, color=look.soft, alpha=0.12, linewidth=0)


def _draw_experiment(axes: Any, experiment: Experiment, axis: str | None, colour: str) -> float:
    """Evaluations, and what says how sure they are; returns where the curves end."""
    seeds = len(experiment.runs)
    evaluations = experiment.curves(EVALUATION, axis)
    training = experiment.curves(TRAINING, axis)
    label = f"{experiment.label} ({seeds} seeds)" if seeds > 1 else experiment.label
    if training and not (seeds > 1 and evaluations):
        curve = combine(training)
        axes.plot(curve.steps, curve.values, color=colour, linewidth=0.9, alpha=0.6)
        if not evaluations:
            _band(axes, curve, colour)
            axes.plot([], [], color=colour, linewidth=0.9, label=f"{label}, training")
    if 1 < len(evaluations) <= MOST_SEED_LINES:
        for curve in evaluations:
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.6, alpha=0.45)
    if evaluations:
        curve = combine(evaluations)
        _band(axes, curve, colour)
        axes.plot(
            curve.steps,
            curve.values,
            color=colour,
            linewidth=2,
            marker="o" if len(curve.steps) <= MOST_MARKERS else None,
            markersize=3.5,
            label=label,
            zorder=3,
        )
    return float(max((c.steps[-1] for c in [*evaluations, *training]), default=0.0))


def _draw_quantity(
    axes: Any,
    experiments: Sequence[Experiment],
    name: str,
    axis: str | None,
    colours: Mapping[str, str],
    *,
    may_be_log: bool = True,
    has_label: bool = True,
) -> None:
    drawn = []
    for experiment in experiments:
        curves = experiment.curves(name, axis)
        if curves:
            curve = combine(curves)
            drawn.append(curve.values)
            _band(axes, curve, colours[experiment.label])
            axes.plot(curve.steps, curve.values, color=colours[experiment.label], linewidth=1.4)
    values = np.concatenate(drawn) if drawn else np.zeros(1)
    if may_be_log and values.min() > 0 and values.max() / values.min() > LOG_SPAN:
        axes.set_yscale("log")
    dress(axes, _axis_of(experiments, axis), has_label=has_label)


def _band(axes: Any, curve: Any, colour: str) -> None:
    if curve.low is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)


def _fitting(
    references: Sequence[Published], env: str, experiments: Sequence[Experiment]
) -> list[Published]:
    """The published curves of an env's task, of agents that saw what these see."""
    found = [r for r in references if task_key(r.task) == task_key(env)]
    sees_pixels = {bool(run.settings.get("env.pixels")) for e in experiments for run in e.runs}
    return [r for r in found if r.has_pixels in sees_pixels] or found


def _axis_of(experiments: Sequence[Experiment], axis: str | None) -> str:
    return axis or experiments[0].runs[0].axis


def _losses_of(experiments: Sequence[Experiment]) -> list[str]:
    """Every loss, the total first."""
    names = {name for e in experiments for name in e.curve_names if name.startswith("loss{")}
    return sorted(names, key=lambda name: (name != "loss{name=total}", name))


def _colours(envs: Mapping[str, Sequence[Experiment]], look: Style) -> dict[str, str]:
    labels = dict.fromkeys(e.label for experiments in envs.values() for e in experiments)
    return {label: look.series[i % len(look.series)] for i, label in enumerate(labels)}


def _check_references(
    envs: Mapping[str, Any], references: Sequence[Published], axis: str | None
) -> None:
    if references and axis not in (None, "env_steps"):
        raise ConfigurationError(
            f"reference: published curves are over env steps, and x is {axis}; leave --x out"
        )
    keys = {task_key(env) for env in envs}
    for reference in references:
        if task_key(reference.task) not in keys:
            raise ConfigurationError(
                f"reference: no run plays {reference.task}; the runs play {', '.join(envs)}"
            )


def _note(
    figure: Any,
    envs: Mapping[str, Sequence[Experiment]],
    references: Sequence[Published],
    look: Style,
) -> None:
    """What bands mean, and where published numbers come from, below everything."""
    experiments = [e for found in envs.values() for e in found]
    parts = []
    if any(len(e.runs) > 1 for e in experiments):
        parts.append(
            "Several seeds: interquartile mean of the evaluations, band = its 95 % interval by the "
            "stratified bootstrap over seeds (arXiv:2108.13264), fine lines = seeds."
        )
    if any(len(e.runs) == 1 and e.curves(EVALUATION) for e in experiments):
        parts.append("One seed: evaluation mean, band = standard deviation over its episodes.")
    if any(e.curves(TRAINING) and len(e.runs) == 1 for e in experiments):
        parts.append("Thin line: mean of recent training episodes.")
    parts += [f"{r.label}: {r.source}." for r in {r.source: r for r in references}.values()]
    if parts:
        figure.supxlabel(
            "\n".join(_wrapped(part) for part in parts),
            x=0.01,
            ha="left",
            fontsize=7.5,
            color=look.soft,
        )


def _wrapped(text: str, width: int = 170) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
