"""The picture of runs: return by env, then losses and throughput where all runs share one env.

A colour is an experiment, everywhere on the picture; a published curve is grey and dashed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import replacing
from worldloom_dist.metrics.names import loss_of
from worldloom_dist.plot.panels import (
    axis_of,
    draw_held_out,
    draw_quantity,
    draw_returns,
    held_out_name,
)
from worldloom_dist.plot.reference import Published, task_key
from worldloom_dist.plot.runs import Experiment, Run, combine, experiments_of
from worldloom_dist.plot.style import STYLES, Style, check_drawing, dress, rules
from worldloom_dist.run.curves import EVALUATION, RATES, TRAINING

__all__ = ["plot_runs"]

COLUMNS = 3
LOSS_COLUMNS = 4
LEGEND_CHARS = 150
"""That fit in a line of a legend."""
DPI = 150
LOSS_TITLE_CHARS = 104
"""That fit above a row of losses."""


def plot_runs(
    runs: Sequence[Run],
    path: Path,
    title: str = "",
    *,
    axis: str | None = None,
    references: Sequence[Published] = (),
    style: str = "light",
) -> None:
    """Draw runs into a picture, which appears whole; its format follows from the file's ending.

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
        ConfigurationError: If the file cannot be written, no run plays the task of a reference, or
            a run has nothing over the axis.
    """
    check_drawing(path)
    import matplotlib as mpl

    _check_axis(runs, axis)
    panels = _panels(runs)
    _check_references(panels, references, axis)
    look = STYLES[style]
    settings: Any = rules(look)
    with mpl.rc_context(settings):
        figure = _figure(experiments_of(runs), panels, title, axis, references, look)
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=DPI)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"output: {path} cannot be written ({error})") from error


def _check_axis(runs: Sequence[Run], axis: str | None) -> None:
    """Refuse env steps of a run that makes none: it would be one point at 0."""
    without = [run.name for run in runs if run.is_offline]
    if axis == "env_steps" and without:
        raise ConfigurationError(
            f"x: {', '.join(without)} was trained from files and has no env steps; draw it over "
            "updates or time"
        )


def _panels(runs: Sequence[Run]) -> dict[str, list[Experiment]]:
    """Env -> what its panel shows: runs of it, and runs of several tasks of which it is one."""
    has_scores = all(run.scores is not None for run in runs if run.tasks)
    drawn = []
    for run in runs:
        drawn.append(run.scored() if has_scores else run)
        drawn += run.tasks
    return experiments_of(drawn)


def _figure(
    envs: Mapping[str, Sequence[Experiment]],
    panels: Mapping[str, Sequence[Experiment]],
    title: str,
    axis: str | None,
    references: Sequence[Published],
    look: Style,
) -> Any:
    from matplotlib.figure import Figure

    colours = _colours(panels, look)
    alone = next(iter(envs.values())) if len(envs) == 1 else []
    is_offline = bool(alone) and alone[0].runs[0].is_offline
    losses = _losses_of(alone)
    heights = [] if is_offline else [3.0 * math.ceil(len(panels) / COLUMNS) + 0.5]
    heights += [1.9 * math.ceil(len(losses) / LOSS_COLUMNS) + 0.3] if losses else []
    heights += [2.3] if alone else []
    figure = Figure(figsize=(11, sum(heights) + 0.7), layout="constrained")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel())
    if not is_offline:
        _add_facets(next(parts), panels, axis, colours, references, look)
    if losses:
        _add_losses(next(parts), alone, losses, axis, colours)
    if alone:
        _add_rates(next(parts), alone, axis, colours)
    if is_offline and not title:
        title = f"{alone[0].label} on {alone[0].env}" if len(alone) == 1 else alone[0].env
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    drawn = [r for env, found in panels.items() for r in _fitting(references, env, found)]
    _note(figure, panels, axis, drawn, look)
    return figure


def _add_facets(
    part: Any,
    envs: Mapping[str, Sequence[Experiment]],
    axis: str | None,
    colours: Mapping[str, str],
    references: Sequence[Published],
    look: Style,
) -> None:
    """The return in every env; of data without an env the first loss."""
    columns = min(COLUMNS, len(envs))
    grid = _grid(part, math.ceil(len(envs) / columns), columns, len(envs))
    for axes, (env, experiments) in zip(grid, envs.items(), strict=True):
        if experiments[0].runs[0].is_offline:
            for name in _losses_of(experiments)[:1]:
                draw_quantity(axes, experiments, name, axis, colours, has_key=True)
                axes.set_ylabel(_loss_title(name))
            dress(axes, axis_of(experiments, axis))
            axes.set_title(env)
        else:
            drawn = _fitting(references, env, experiments)
            draw_returns(axes, env, experiments, axis, colours, drawn, look)
    _add_legend(part, grid)


def _add_losses(
    part: Any,
    experiments: Sequence[Experiment],
    losses: Sequence[str],
    axis: str | None,
    colours: Mapping[str, str],
) -> None:
    """Every loss on its own scale."""
    rows = math.ceil(len(losses) / LOSS_COLUMNS)
    columns = math.ceil(len(losses) / rows)
    grid = _grid(part, rows, columns, len(losses))
    needs_key = experiments[0].runs[0].is_offline and len(experiments) > 1
    for place, name in enumerate(losses):
        has_key = needs_key and place == 0
        draw_quantity(grid[place], experiments, name, axis, colours, has_key=has_key)
        draw_held_out(grid[place], experiments, name, axis, colours)
        dress(
            grid[place],
            axis_of(experiments, axis),
            has_label=place + columns >= len(losses),
            most_ticks=4 if columns == LOSS_COLUMNS else 6,
        )
        title = textwrap.fill(_loss_title(name), LOSS_TITLE_CHARS // columns, max_lines=3)
        grid[place].set_title(title)
    _add_legend(part, grid)


def _loss_title(name: str) -> str:
    short = loss_of(name) or ""
    return short if short.startswith("loss") else f"loss: {short}"


def _add_rates(
    part: Any, experiments: Sequence[Experiment], axis: str | None, colours: Mapping[str, str]
) -> None:
    is_offline = experiments[0].runs[0].is_offline
    rates = [name for key, name in RATES.items() if not (is_offline and key == "env_steps_per_s")]
    for axes, name in zip(_grid(part, 1, len(rates), len(rates)), rates, strict=True):
        draw_quantity(axes, experiments, name, axis, colours, may_be_log=False)
        axes.set_ylim(bottom=0)
        dress(axes, axis_of(experiments, axis))
        axes.set_title(name)


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


def _fitting(
    references: Sequence[Published], env: str, experiments: Sequence[Experiment]
) -> list[Published]:
    """The published curves of an env's task, of agents that saw what these see."""
    found = [r for r in references if task_key(r.task) == task_key(env)]
    sees_pixels = {bool(run.settings.get("env.pixels")) for e in experiments for run in e.runs}
    return [r for r in found if r.has_pixels in sees_pixels] or found


def _losses_of(experiments: Sequence[Experiment]) -> list[str]:
    """Every loss, the total first."""
    names = {name for e in experiments for name in e.curve_names if loss_of(name) is not None}
    names = {name for name in names if name not in {held_out_name(other) for other in names}}
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
    axis: str | None,
    references: Sequence[Published],
    look: Style,
) -> None:
    """What bands mean, and where published numbers come from, below everything."""
    experiments = [e for found in envs.values() for e in found]
    parts = []
    returns = [e.curves(EVALUATION, axis) or e.curves(TRAINING, axis) for e in experiments]
    several = [curves for curves in returns if len(curves) > 1]
    combined = [curves for curves in several if combine(curves) is not None]
    if combined:
        parts.append(
            "Several seeds: interquartile mean of the evaluations, band = its 95 % interval by the "
            "stratified bootstrap over seeds (arXiv:2108.13264), fine lines = seeds."
        )
    if len(combined) < len(several):
        parts.append("Seeds that share no step have no curve together: fine lines = seeds.")
    if any(len(e.curves(EVALUATION, axis)) == 1 for e in experiments):
        parts.append("One seed: evaluation mean, band = standard deviation over its episodes.")
    if any(e.curves(TRAINING) and len(e.runs) == 1 for e in experiments):
        parts.append("Thin line: mean of recent training episodes.")
    if any(run.tasks for e in experiments for run in e.runs):
        parts.append("One task of several: over its own env steps.")
    losses = [(e, name) for e in experiments for name in _losses_of([e])]
    if any(held_out_name(name) in e.curve_names for e, name in losses):
        parts.append("Dotted loss: on data that is never trained on.")
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
    return "\n".join(textwrap.wrap(text, width))
