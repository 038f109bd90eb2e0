"""Which columns of a LeRobot dataset are a run's observations, actions and rewards, and in which
spaces.

By themselves ``observation.state``, ``observation.images.top`` and their like become ``obs/state``
and ``obs/top`` (a single one ``obs``), ``action`` becomes ``action``, ``next.reward``,
``next.done`` and ``next.truncated`` what they say. After a question mark others are named, by the
columns of the run: ``?obs=observation.state&reward=next.score``. Continuous actions must lie in
[-1, 1]; ``?bounds=-2:2`` scales them by the bounds of the env's action space (``-2/-1:2/1`` where
each number has its own, ``bounds/KEY`` where each key has), ``?bounds=stats`` by the least and the
largest that ``meta/stats.json`` knows of each number, which are no bounds of an env.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.json_text import read_object
from worldloom.core.specs import ACTION, OBS, EnvSpec, column_name
from worldloom_dist.replay.formats.lerobot_layout import COUNTERS, SCHEME, Feature, Layout
from worldloom_dist.replay.formats.lerobot_pictures import picture_shape

__all__ = [
    "CHOOSE",
    "DONE",
    "REWARD",
    "TERMINATED",
    "TRUNCATED",
    "Chosen",
    "action_space",
    "choose_columns",
    "feature_name",
    "obs_space",
    "spelled_out",
]

REWARD = "next.reward"
DONE = "next.done"
TRUNCATED = "next.truncated"
TERMINATED = "next.terminated"
"""Whether a decision ended the episode for good. It is this program's own: an end may be a limit
too, which ``next.done`` and ``next.truncated`` cannot say.
"""
BOUNDS = "bounds"
FLAGS = {"reward": REWARD, "terminated": DONE, "truncated": TRUNCATED}
CHOOSE = "name a dataset of the same env, or choose its columns with ?obs=COLUMN&action=COLUMN"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Columns of a dataset by what they are in a run.

    Attributes:
        obs, action: By key of the run's spaces.
        reward: Of each decision.
        done, truncated: Whether a decision ended the episode, and whether by a limit; None where
            the dataset does not say.
        tells_ends: True when ``done`` alone says that an episode ended for good, a limit or not.
        bounds: As they were asked for, by ``bounds`` or ``bounds/KEY``.
    """

    obs: Mapping[str, Feature]
    action: Mapping[str, Feature]
    reward: Feature
    done: Feature | None
    truncated: Feature | None
    tells_ends: bool
    bounds: Mapping[str, str]

    def bounds_of(self, key: str) -> str:
        """How an action of the run is scaled."""
        return self.bounds.get(f"{BOUNDS}/{key}") or self.bounds.get(BOUNDS) or "-1:1"

    @property
    def features(self) -> list[Feature]:
        """All of them."""
        flags = (self.reward, self.done, self.truncated)
        return [*self.obs.values(), *self.action.values(), *(one for one in flags if one)]


def feature_name(group: str, key: str, *, is_image: bool) -> str:
    """The column that this program writes for a key of a run's spaces."""
    if group == ACTION:
        return ACTION if key == ACTION else f"{ACTION}.{key}"
    if key == OBS:
        return "observation.image" if is_image else "observation.state"
    return f"observation.images.{key}" if is_image else f"observation.{key}"


def choose_columns(
    layout: Layout, query: Mapping[str, str], env: EnvSpec | None, *, is_ours: bool
) -> Chosen:
    """Choose the columns to read.

    Args:
        layout: Of the dataset.
        query: Columns of the run and the columns of the dataset that are to be used for them.
        env: Whose rows they are, where the dataset says so.
        is_ours: True when this program wrote the dataset.

    Raises:
        ConfigurationError: If the query has other keys.
        CheckpointError: If the dataset lacks a column, or it holds no numbers.
    """
    for key in query:
        group = key.partition("/")[0]
        if key not in FLAGS and (group not in (OBS, ACTION, BOUNDS) or key.endswith("/")):
            raise ConfigurationError(
                f"{SCHEME}{layout.folder}: {key!r} is no column of a run; use obs, obs/KEY, "
                f"action, action/KEY, {', '.join(FLAGS)}, {BOUNDS} or {BOUNDS}/KEY"
            )
    bounds = {key: text for key, text in query.items() if key.partition("/")[0] == BOUNDS}
    named = {key: _named(layout, key, name) for key, name in query.items() if key not in bounds}
    groups: dict[str, dict[str, Feature]] = {}
    for group in (OBS, ACTION):
        prefix = f"{group}/"
        asked = {
            key.removeprefix(prefix): feature
            for key, feature in named.items()
            if key == group or key.startswith(prefix)
        }
        groups[group] = asked or _natural(layout, group, env)
    unknown = sorted({*bounds} - {BOUNDS, *(f"{BOUNDS}/{key}" for key in groups[ACTION])})
    if unknown:
        raise ConfigurationError(
            f"{SCHEME}{layout.folder}: {unknown[0]!r} is of no action; they are "
            f"{sorted(groups[ACTION])}"
        )
    flags = {
        key: named.get(key) or (_named(layout, key, name) if name in layout.features else None)
        for key, name in FLAGS.items()
    }
    tells_ends = is_ours and TERMINATED in layout.features and "terminated" not in query
    if tells_ends:
        flags["terminated"] = _named(layout, "terminated", TERMINATED)
    reward = flags["reward"]
    if reward is None:
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: has no column {REWARD!r}, and a run learns from rewards; it "
            f"has {_listed(layout)}: name the one that holds them with ?reward=COLUMN"
        )
    for feature in (reward, flags["terminated"], flags["truncated"]):
        if feature is not None and feature.shape not in ((), (1,)):
            raise CheckpointError(
                f"{SCHEME}{layout.folder}: column {feature.name!r} has rows of shape "
                f"{feature.shape}, and a run stores one number; name another column"
            )
    return Chosen(
        dict(sorted(groups[OBS].items())),
        dict(sorted(groups[ACTION].items())),
        reward,
        flags["terminated"],
        flags["truncated"],
        tells_ends,
        bounds,
    )


def spelled_out(layout: Layout, chosen: Chosen) -> str:
    """What was chosen, however it was asked for: equal texts make equal rows of a dataset.

    Raises:
        ConfigurationError, CheckpointError: As :func:`action_space`.
    """
    flags = (chosen.reward, chosen.done, chosen.truncated)
    bounds = {
        key: [end.tolist() for end in _bounds(layout, feature, chosen.bounds_of(key))]
        for key, feature in chosen.action.items()
        if feature.dtype.startswith("float")
    }
    found = {
        OBS: {key: feature.name for key, feature in chosen.obs.items()},
        ACTION: {key: feature.name for key, feature in chosen.action.items()},
        "flags": [feature and feature.name for feature in flags],
        BOUNDS: bounds,
    }
    return json.dumps(found, sort_keys=True)


def _named(layout: Layout, key: str, name: str) -> Feature:
    """A column by its name, usable as the run's column ``key``."""
    feature = layout.features.get(name)
    is_obs = key == OBS or key.startswith(f"{OBS}/")
    if feature is None or not (feature.is_number or (is_obs and feature.is_picture)):
        found = "no column" if feature is None else f"{feature.dtype} in the column"
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: has {found} {name!r}, which is to be the run's {key!r}; it "
            f"has {_listed(layout)}"
        )
    if feature.is_depth:
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: column {name!r} holds depths, and images of 8 bits are "
            "read; choose other columns with ?obs=COLUMN"
        )
    return feature


def _natural(layout: Layout, group: str, env: EnvSpec | None) -> dict[str, Feature]:
    """The columns of a group by their names."""
    if env is not None:
        specs = env.obs if group == OBS else env.action
        return {
            key: _named(
                layout,
                column_name(group, key),
                feature_name(group, key, is_image=spec.is_image),
            )
            for key, spec in specs.items()
        }
    usable = {
        name: feature
        for name, feature in layout.features.items()
        if (feature.is_number or (group == OBS and feature.is_picture and not feature.is_depth))
        and name not in COUNTERS
    }
    word = "observation" if group == OBS else ACTION
    if word in usable:
        return {group: usable[word]}
    found: dict[str, Feature] = {}
    for name, feature in usable.items():
        if not name.startswith(f"{word}."):
            continue
        key = name.removeprefix(f"{word}.").removeprefix("images.")
        if key in found:
            raise CheckpointError(
                f"{SCHEME}{layout.folder}: columns {found[key].name!r} and {name!r} would both be "
                f"the run's {column_name(group, key)!r}; name those to use with ?{group}/KEY=COLUMN"
            )
        found[key] = feature
    if not found:
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: has no column {word!r} or {word + '.KEY'!r} of numbers; it "
            f"has {_listed(layout)}: name one with ?{group}=COLUMN"
        )
    return {group: next(iter(found.values()))} if len(found) == 1 else found


def _listed(layout: Layout) -> list[str]:
    return sorted(set(layout.features) - set(COUNTERS))


def obs_space(layout: Layout, obs: Mapping[str, Feature]) -> spaces.Space[Any]:
    """The space of a live env that would give such observations."""
    return _joined(OBS, {key: _obs_leaf(layout, feature) for key, feature in obs.items()})


def _obs_leaf(layout: Layout, feature: Feature) -> spaces.Box:
    if feature.is_picture:
        return spaces.Box(0, 255, picture_shape(layout.folder, feature), np.uint8)
    if feature.dtype == "uint8":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, feature.shape, np.float32)


def action_space(
    layout: Layout, chosen: Chosen, ranges: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> spaces.Space[Any]:
    """The space of the actions.

    Args:
        layout: Of the dataset.
        chosen: Its columns.
        ranges: The least and the largest value of each column of whole numbers.

    Raises:
        ConfigurationError: If the bounds that were asked for are none.
        CheckpointError: If choices are negative, or the dataset has no bounds.
    """
    leaves: dict[str, spaces.Space[Any]] = {}
    for key, feature in chosen.action.items():
        if feature.name not in ranges:
            low, high = _bounds(layout, feature, chosen.bounds_of(key))
            leaves[key] = spaces.Box(low, high, feature.shape, np.float32)
            continue
        least, most = ranges[feature.name]
        if least.min() < 0:
            raise CheckpointError(
                f"{SCHEME}{layout.folder}: column {feature.name!r} holds whole actions, which "
                f"count choices from 0, got {int(least.min())}; renumber them, or store floats"
            )
        classes = most.astype(np.int64) + 1
        leaves[key] = (
            spaces.Discrete(int(classes[0]))
            if len(classes) == 1
            else spaces.MultiDiscrete(classes.reshape(feature.shape))
        )
    return _joined(ACTION, leaves)


def _joined(group: str, leaves: dict[str, Any]) -> spaces.Space[Any]:
    return leaves[group] if list(leaves) == [group] else spaces.Dict(leaves)


def _bounds(layout: Layout, feature: Feature, asked: str) -> tuple[np.ndarray, np.ndarray]:
    if asked == "stats":
        return _measured_bounds(layout, feature)
    size = math.prod(feature.shape)
    try:
        low, high = (
            np.array([np.float32(number) for number in end.split("/")]) for end in asked.split(":")
        )
        if not (np.isfinite([*low, *high]).all() and {len(low), len(high)} <= {1, size}):
            raise ValueError
        ends = tuple(np.broadcast_to(end, size).reshape(feature.shape) for end in (low, high))
        if not (ends[0] < ends[1]).all():
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f"{SCHEME}{layout.folder}: {BOUNDS} must be LOW:HIGH, two numbers or {size} each with "
            f"slashes between them, or stats, got {asked!r}; give those of the env's action "
            f"space, for example {BOUNDS}=-2:2"
        ) from None
    return ends[0], ends[1]


def _measured_bounds(layout: Layout, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    try:
        stats = read_object(layout.folder / "meta" / "stats.json")[feature.name]
        low, high = (
            np.asarray(stats[end], np.float32).reshape(feature.shape) for end in ("min", "max")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: meta/stats.json has no min and max of {feature.name!r} "
            f"({error}); give {BOUNDS}=LOW:HIGH"
        ) from error
    constant = low >= high  # a number that never changes lies in the middle
    return np.where(constant, low - 1, low), np.where(constant, low + 1, high)
