"""Episodes that come from a file or go into one, whatever its format: their rows, checked and in
the dtypes of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError
from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training.casting import convert

__all__ = ["EpisodeFile", "bare", "check_whole", "fit_rows", "gym_space", "single_key"]

UNIT = 1.0 + 1e-5
"""Continuous actions lie in [-1, 1], up to rounding."""


@dataclass(slots=True)
class EpisodeFile:
    """A file of episodes that was opened.

    Attributes:
        env: What it says of the environment that the episodes come from.
        episodes: The rows of one episode after the other, read as they are asked for.
        notes: Sentences on what is not used and what had to be concluded; complete once all
            episodes are read.
        repeated: Episodes so far of which the file does not say what the last action led to.
        choose: What to do when it is of another env than the run.
        has_native_actions: True when its actions were those of an env, and were scaled by bounds
            that its name may give.
    """

    env: EnvSpec
    episodes: Iterator[Rows]
    notes: list[str] = field(default_factory=list)
    repeated: int = 0
    choose: str = "name a file of the same env"
    has_native_actions: bool = False


def fit_rows(rows: Rows, columns: Mapping[str, ArraySpec], source: str) -> Rows:
    """Rows of a file as rows of a run: columns of the agent are zero, dtypes are the run's, and no
    value changes.

    Raises:
        CheckpointError: If a column is missing or unknown, has another shape, holds what the run
            cannot, or an action lies outside its space; if the rows are no episode.
    """
    with reading(source, "holds rows that do not fit into the run"):
        return _fitted(rows, columns, source)


def _fitted(rows: Rows, columns: Mapping[str, ArraySpec], source: str) -> Rows:
    count = len(rows["is_first"])
    unknown = set(rows) - set(columns)
    if unknown:
        raise CheckpointError(
            f"{source}: holds columns {sorted(unknown)} that the run does not have; "
            f"it has {sorted(columns)}"
        )
    fitted: Rows = {}
    for name, spec in columns.items():
        if name not in rows:
            if name == "obs" or name.startswith(("obs/", "action")):
                raise CheckpointError(
                    f"{source}: has no column {name!r}, which the run needs; it holds "
                    f"{sorted(rows)}"
                )
            fitted[name] = spec.zeros(count)
            continue
        value = rows[name]
        if value.shape != (count, *spec.shape):
            raise CheckpointError(
                f"{source}: column {name!r} has rows of shape {value.shape[1:]} and "
                f"the run stores {spec.shape}; "
                "name the env and the settings that the episodes were recorded with"
            )
        fitted[name] = _exactly(name, value, spec, source)
        if name.startswith("action"):
            _check_actions(name, fitted[name], spec, source)
    try:
        check_whole(fitted, source)
    except ShapeMismatchError as error:
        raise CheckpointError(f"{error}; mend the file") from error
    return fitted


def _exactly(name: str, value: np.ndarray, spec: ArraySpec, source: str) -> np.ndarray:
    """Values in the run's dtype: rounded to float32, else unchanged."""
    column = f"{source}: column {name!r}"
    if value.dtype.kind not in "biuf":
        raise CheckpointError(
            f"{column} is {value.dtype} and the run stores {spec.dtype}; convert the file"
        )
    if spec.dtype == "uint8" and value.dtype.kind == "f":
        raise CheckpointError(
            f"{column} is {value.dtype} and the run stores images as uint8, from 0 to "
            "255; convert the file"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        row = int(np.argwhere(~np.isfinite(value))[0, 0])
        raise CheckpointError(
            f"{column} holds a number that is not finite, first in row {row} of an "
            "episode; clean the file"
        )
    fitted, lost_at = convert(value, np.dtype(spec.dtype))
    if lost_at is not None:
        raise CheckpointError(
            f"{column} holds {value[lost_at]!s}, first in row {lost_at[0]} of an episode, "
            "which does not fit into the run's "
            f"{spec.dtype}; convert or rescale the file"
        )
    return np.ascontiguousarray(fitted)


def _check_actions(name: str, value: np.ndarray, spec: ArraySpec, source: str) -> None:
    if spec.is_discrete:
        classes = np.array(spec.num_classes).reshape(spec.shape)
        if np.any(value < 0) or np.any(value >= classes):
            raise CheckpointError(
                f"{source}: column {name!r} holds choices from {int(value.min())} to "
                f"{int(value.max())}, and the run counts "
                f"{spec.num_classes} choices from 0; renumber them"
            )
    elif value.size and np.abs(value).max() > UNIT:
        raise CheckpointError(
            f"{source}: column {name!r} reaches {float(np.abs(value).max()):g}, and "
            "continuous actions lie in [-1, 1]; "
            "rescale them by the bounds of the env's action space"
        )


def single_key(group: Mapping[str, ArraySpec], what: str, target: Path) -> str:
    """The only key of a group.

    Raises:
        ConfigurationError: If there are several: then only formats with all columns can hold the
            rows.
    """
    if len(group) != 1:
        raise ConfigurationError(
            f"{target}: an .npz holds one {what} array and the run has "
            f"{sorted(group)}; export to a name that ends in .parquet"
        )
    return next(iter(group))


def check_whole(rows: Rows, source: str) -> None:
    """Refuse rows that are no episode.

    Raises:
        ShapeMismatchError: If they do not begin with ``is_first``, begin again or end inside, or
            begin with a reward.
    """
    if not rows["is_first"][0] or rows["is_first"][1:].any():
        found = np.flatnonzero(rows["is_first"]).tolist()
        raise ShapeMismatchError(
            f"{source}: rows of an episode", "is_first at row [0] only", f"{found[:5]}"
        )
    ends = np.flatnonzero(rows["terminated"] | rows["truncated"])
    if len(ends) and ends[0] != len(rows["is_first"]) - 1:
        last = f"an end at the last row, {len(rows['is_first']) - 1}, only"
        raise ShapeMismatchError(
            f"{source}: rows of an episode", last, f"an end at row {int(ends[0])}"
        )
    if rows["reward"][0] != 0:
        raise ShapeMismatchError(
            f"{source}: reward of an episode's first row, to which no action led",
            0.0,
            float(rows["reward"][0]),
        )


def bare(group: Any) -> Any:
    """The only entry of a group, or the group."""
    return next(iter(group.values())) if len(group) == 1 else dict(group)


def gym_space(spec: ArraySpec, *, low: float) -> Any:
    """The Gymnasium space of a column's values; continuous ones reach from ``low`` to ``-low``."""
    from gymnasium import spaces

    if spec.is_discrete and not spec.shape:
        return spaces.Discrete(spec.num_classes[0])
    if spec.is_discrete:
        return spaces.MultiDiscrete(np.array(spec.num_classes).reshape(spec.shape))
    if spec.dtype == "uint8":
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.Box(low, -low, spec.shape, np.dtype(spec.dtype).type)
