"""Our episodes, the published curve and the authors' code here, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import numpy as np

from worldloom_dist.plot.style import STYLES, dress, rules
from worldloom_dist.reproduce.comparison import AUTHORS, OURS
from worldloom_dist.reproduce.targets import Target

__all__ = ["draw"]

NOTE_WIDTH = 120
"""Characters of the note that fit below the picture."""
LABELS = {OURS: "worldloom", AUTHORS: "the authors' code, here"}


def draw(target: Target, records: Sequence[Mapping[str, Any]], path: Path, note: str) -> None:
    """Draw the curves of a result: a point per training episode, a cross per evaluation.

    Args:
        target: What was run.
        records: Of all runs.
        path: The picture, PNG, PDF or SVG.
        note: A line below it.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look = STYLES["light"]
    settings: Any = rules(look)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        end = max((float(r["env_steps"]) for r in records if r["kind"] != "run"), default=1.0)
        _draw_published(axes, target, end, look.soft)
        for colour, side in zip(look.series, (OURS, AUTHORS), strict=False):
            _draw_side(axes, [r for r in records if r["by"] == side], LABELS[side], colour)
        axes.set_xlim(-0.02 * end, 1.03 * end)
        axes.set_ylabel("return")
        axes.set_title(target.name)
        dress(axes, "env_steps")
        axes.legend(frameon=False)
        figure.supxlabel(fill(note, NOTE_WIDTH), x=0.01, ha="left", fontsize=7.5, color=look.soft)
        figure.savefig(path, dpi=110)


def _draw_published(axes: Any, target: Target, end: float, colour: str) -> None:
    published = target.curve()
    if published is not None and min(published.curve.steps) <= end:
        curve = published.curve
        axes.plot(curve.steps, curve.values, "o--", color=colour, label=published.label)
        if curve.low is not None and curve.high is not None:
            known = np.isfinite(curve.low)
            band = (curve.steps[known], curve.low[known], curve.high[known])
            axes.fill_between(*band, color=colour, alpha=0.12, linewidth=0)
    if target.goal is not None:
        axes.axhline(target.goal, color=colour, linestyle="--", label="solved")


def _draw_side(axes: Any, records: Sequence[Mapping[str, Any]], label: str, colour: str) -> None:
    named = False
    for seed in sorted({r["seed"] for r in records}):
        own = [r for r in records if r["seed"] == seed]
        episodes = [r for r in own if r["kind"] == "episode" and r["ended"] == "last"]
        axes.plot(
            [r["env_steps"] for r in episodes],
            [r["return"] for r in episodes],
            ".-",
            color=colour,
            linewidth=0.6,
            alpha=0.7,
            label=None if named or not episodes else f"{label}, training episodes",
        )
        named = named or bool(episodes)
    evaluated = [r for r in records if r["kind"] == "eval"]
    if evaluated:
        axes.plot(
            [r["env_steps"] for r in evaluated],
            [fmean(r["returns"]) for r in evaluated],
            "X",
            color=colour,
            markersize=8,
            label=f"{label}, evaluations",
        )
