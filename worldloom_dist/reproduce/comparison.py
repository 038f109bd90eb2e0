"""Our returns, the published ones and those of the authors' code at equal env steps.

Each is measured as the published ones were: the mean of an evaluation's episodes, or the mean of
the training episodes that ended near those env steps. A record of a curve says whose it is
(``by``), its seed, and its ``kind``; see ``record``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from worldloom_dist.reproduce.targets import Measured, Target
from worldloom_dist.run.text_table import aligned

__all__ = ["AUTHORS", "OURS", "compared", "comparison_table"]

OURS = "worldloom"
AUTHORS = "authors"
EVALUATION_SHARE = 0.05
"""An evaluation counts for env steps that differ from its own by this share at most; a run may lack
the last episodes of a published window, this share of it.
"""
PARTS = 4
"""Beside the published points, the run is looked at after each of this many equal parts."""
HEADS = ("env steps", "episodes of", "published", "here", "seeds", "authors' code here", "seeds")
Records = Sequence[Mapping[str, Any]]
Window = tuple[float, float]
"""Env steps from which, and up to which, training episodes that ended count."""


def compared(target: Target, records: Records) -> list[dict[str, Any]]:
    """One record per point of the comparison, in the order of env steps.

    Args:
        target: What was run.
        records: Of all runs, ours and those of the authors' code.

    Returns:
        ``env_steps``; ``measured`` (episodes of evaluations or of training) and for the latter
        ``window_env_steps``, the first and the last of them; ``published`` mean and
        ``published_std`` (None where there is none); per side ``mean``, ``std`` over seeds
        (population; None for one seed) and ``seeds``, the mean of each.
    """
    reached = max((float(r["env_steps"]) for r in records if r["kind"] != "run"), default=0.0)
    whole_until = _whole_until(records)
    found = []
    for env_steps, measured, mean, std, window in _points(target, reached):
        needs_whole = measured == "training" and mean is not None
        needed = window[1] - EVALUATION_SHARE * (window[1] - window[0]) if needs_whole else 0.0
        may_count = [r for r in records if whole_until[r["by"], r["seed"]] >= needed]
        if needs_whole and not may_count:
            continue
        row: dict[str, Any] = {
            "kind": "comparison",
            "env_steps": int(env_steps),
            "measured": measured,
            "published": mean,
            "published_std": std,
        }
        if measured == "training":
            row["window_env_steps"] = list(window)
        for side in (OURS, AUTHORS):
            row[side] = _side(
                [r for r in may_count if r["by"] == side], env_steps, measured, window
            )
        found.append(row)
    return found


def _whole_until(records: Records) -> dict[tuple[str, int], float]:
    """By side and seed: the env steps up to which all episodes of a run are there."""
    found: dict[tuple[str, int], float] = {}
    for record in records:
        run = (record["by"], record["seed"])
        found[run] = max(found.get(run, 0.0), float(record["env_steps"]))
    return found


def _points(
    target: Target, reached: float
) -> list[tuple[float, Measured, float | None, float | None, Window]]:
    """Env steps, what is measured there, published mean and deviation, and the window."""
    found: list[tuple[float, Measured, float | None, float | None, Window]] = []
    published = target.curve()
    if published is not None:
        curve = published.curve
        windows = published.windows
        for i, env_steps in enumerate(curve.steps):
            if env_steps > reached * (1 + EVALUATION_SHARE):
                break
            below = math.nan if curve.low is None else float(curve.low[i])
            spread = float(curve.values[i]) - below
            std = round(spread, 2) if math.isfinite(spread) else None
            low, high = (env_steps, env_steps) if windows is None else windows[i]
            window = (float(low), float(high))
            point = (float(env_steps), target.measured, float(curve.values[i]), std, window)
            found.append(point)
    end = float(target.env_steps)
    near = EVALUATION_SHARE * end
    is_published = any(abs(env_steps - end) <= near for env_steps, *_ in found)
    if target.measured == "evaluation" and reached >= end - near and not is_published:
        found.append((end, "evaluation", None, None, (end, end)))
    part = target.env_steps / PARTS
    for number in range(1, PARTS + 1):
        middle = number * part
        if middle <= reached * (1 + EVALUATION_SHARE):
            window = (middle - part / 2, middle + part / 2)
            found.append((middle, "training", None, None, window))
    known = {(env_steps, measured): None for env_steps, measured, mean, *_ in found if mean}
    found = [row for row in found if row[2] is not None or (row[0], row[1]) not in known]
    return sorted(found, key=lambda row: (row[0], row[1]))


def _side(
    records: Iterable[Mapping[str, Any]], env_steps: float, measured: Measured, window: Window
) -> dict[str, Any] | None:
    """One side at a point; None where it has no episodes there."""
    by_seed: dict[int, list[float]] = {}
    low, high = window
    for record in records:
        ended = record["env_steps"]
        if measured == "evaluation":
            is_near = abs(ended - env_steps) <= EVALUATION_SHARE * env_steps
            if record["kind"] == "eval" and is_near:
                by_seed[record["seed"]] = list(record["returns"])  # the last one counts
        elif record["kind"] == "episode" and record["ended"] == "last" and low <= ended <= high:
            by_seed.setdefault(record["seed"], []).append(record["return"])
    means = {seed: fmean(returns) for seed, returns in sorted(by_seed.items()) if returns}
    if not means:
        return None
    values = list(means.values())
    return {
        "mean": round(fmean(values), 2),
        "std": round(pstdev(values), 2) if len(values) > 1 else None,
        "seeds": {str(seed): round(mean, 2) for seed, mean in means.items()},
    }


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of :func:`compared` as lines of text; the columns of the authors' code are left out
    where it was not run.
    """
    has_authors = any(row[AUTHORS] for row in rows)
    columns = len(HEADS) if has_authors else len(HEADS) - 2
    lines: list[Sequence[str]] = [HEADS[:columns]]
    for row in rows:
        cells = [
            f"{row['env_steps']:,}",
            row["measured"],
            _shown(row["published"], row["published_std"]),
        ]
        for side in (OURS, AUTHORS):
            found = row[side]
            cells.append(_shown(found["mean"], found["std"]) if found else "-")
            seeds = found["seeds"] if found else {}
            cells.append(", ".join(f"{seed}: {mean:.1f}" for seed, mean in seeds.items()) or "-")
        lines.append(cells[:columns])
    return aligned(lines, right=("env steps", "published", "here", "authors' code here"))


def _shown(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.1f}" if std is None else f"{mean:.1f} +- {std:.1f}"
