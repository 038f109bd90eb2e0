"""One panel of a picture: the return in an env, or any other quantity."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldloom_dist.metrics.names import key_of, loss_of
from worldloom_dist.plot.reference import Published
from worldloom_dist.plot.runs import Experiment, combine
from worldloom_dist.plot.style import Style, dress
from worldloom_dist.run.curves import EVALUATION, TRAINING, Curve

__all__ = [
    "axis_of",
    "draw_held_out",
    "draw_quantity",
    "draw_returns",
    "held_out_name",
    "together",
]

LOG_SPAN = 50.0
"""A positive quantity that spans more than this factor is drawn on a logarithmic axis."""
TITLE_CHARS = 46
"""In a line of a panel's title."""
MOST_SEED_LINES = 20
MOST_MARKERS = 40
NO_COMMON_STEP = "seeds without a common step"
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)))


def draw_returns(
    axes: Any,
    env: str,
    experiments: Sequence[Experiment],
    axis: str | None,
    colours: Mapping[str, str],
    references: Sequence[Published],
    look: Style,
) -> None:
    """The return in one env, with the published curves of its task behind."""
    for number, reference in enumerate(references):
        _draw_reference(axes, reference, number, look)
    ends = [0.0]
    for experiment in experiments:
        ends.append(_draw_experiment(axes, experiment, axis, colours[experiment.label]))
    first = experiments[0].runs[0]
    several = f"{len(first.tasks)} tasks: {first.settings.get('tasks')}"
    axes.set_title(textwrap.fill(several, TITLE_CHARS, max_lines=2) if first.tasks else env)
    axes.set_ylabel(first.measure)
    if references and max(ends) > 0:  # a published curve may be ten times as long
        axes.set_xlim(-0.02 * max(ends), 1.03 * max(ends))
    dress(axes, axis_of(experiments, axis))
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
    evaluations = experiment.curves(EVALUATION, axis)
    training = experiment.curves(TRAINING, axis)
    has_seeds = len(experiment.runs) > 1
    label = experiment.label
    if has_seeds:
        label += f" ({experiment.counted(EVALUATION if evaluations else TRAINING)})"
    if training and not (has_seeds and evaluations):
        for curve in together(training):
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.9, alpha=0.6)
            if not evaluations:
                _band(axes, curve, colour)
        if not evaluations:
            axes.plot([], [], color=colour, linewidth=0.9, label=f"{label}, training")
    if 1 < len(evaluations) <= MOST_SEED_LINES:
        for curve in evaluations:
            axes.plot(
                *(curve.steps, curve.values),
                color=colour,
                linewidth=0.6,
                alpha=0.45,
                marker="." if len(curve.steps) == 1 else None,
            )
    whole = combine(evaluations) if evaluations else None
    if evaluations and whole is None:
        axes.plot([], [], color=colour, linewidth=0.6, label=f"{label}, {NO_COMMON_STEP}")
    if whole is not None:
        _band(axes, whole, colour)
        axes.plot(
            whole.steps,
            whole.values,
            color=colour,
            linewidth=2,
            marker="o" if len(whole.steps) <= MOST_MARKERS else None,
            markersize=3.5,
            label=label,
            zorder=3,
        )
    return float(max((c.steps[-1] for c in [*evaluations, *training]), default=0.0))


def draw_quantity(
    axes: Any,
    experiments: Sequence[Experiment],
    name: str,
    axis: str | None,
    colours: Mapping[str, str],
    *,
    may_be_log: bool = True,
    has_key: bool = False,
) -> None:
    """One quantity of several experiments; ``has_key`` names them in the figure's legend."""
    drawn = []
    for experiment in experiments:
        colour = colours[experiment.label]
        key = {"label": experiment.label} if has_key else {}
        for curve in together(experiment.curves(name, axis)):
            drawn.append(curve.values)
            _band(axes, curve, colour)
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.4, **key)
            key = {}
    values = np.concatenate(drawn) if drawn else np.zeros(1)
    if may_be_log and values.min() > 0 and values.max() / values.min() > LOG_SPAN:
        axes.set_yscale("log")


def held_out_name(loss: str) -> str:
    """Of the same loss on data that is never trained on."""
    return key_of("loss", name=f"held_out/{loss_of(loss)}")


def draw_held_out(
    axes: Any,
    experiments: Sequence[Experiment],
    loss: str,
    axis: str | None,
    colours: Mapping[str, str],
) -> None:
    """A loss on held-out data, dotted, in the panel of the same loss of training."""
    for experiment in experiments:
        colour = colours[experiment.label]
        for curve in together(experiment.curves(held_out_name(loss), axis)):
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.4, linestyle=":")


def together(curves: Sequence[Curve]) -> list[Curve]:
    """What is drawn of several seeds: one curve, or where they share no step, their own."""
    one = combine(curves) if curves else None
    return list(curves) if one is None else [one]


def _band(axes: Any, curve: Any, colour: str) -> None:
    if curve.low is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)


def axis_of(experiments: Sequence[Experiment], axis: str | None) -> str:
    """What curves are over: what was asked for, else what the runs themselves are."""
    return axis or experiments[0].runs[0].axis
