"""The names that recorded transitions go by, and where their episodes end: one answer for every
reader.

Arrays are indexed by transition t: the action taken in ``obs[t]``, that action's reward and end.
What others call them:

    obs           observations, observation                  Gymnasium, D4RL, Minari
    next_obs      next_observations, next_observation        D4RL
    actions       action
    rewards       reward
    terminated    terminations, terminals, terminal          nothing follows, the value there is 0
    truncated     truncations, timeouts, timeout             likewise: a time limit or the like
    dones         done                                       either of the two, as Gym had it
    episode_index episode_id, episode_ids                    of each transition (LeRobot)
    episode_starts, episode_ends, episode_lengths            where no end is marked

Rows in the manner of dm_env and RLDS (``is_first``, ``is_last``, ``is_terminal``) index rewards
otherwise, so they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from worldloom.core.exceptions import CheckpointError

__all__ = [
    "NAMES",
    "Ends",
    "cut_note",
    "find_ends",
    "find_seams",
    "flat_note",
    "match_names",
    "unused_note",
]

NAMES: dict[str, tuple[str, ...]] = {
    "obs": ("obs", "observations", "observation"),
    "next_obs": ("next_obs", "next_observations", "next_observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "terminations", "termination", "terminals", "terminal"),
    "truncated": ("truncated", "truncations", "truncation", "timeouts", "timeout"),
    "dones": ("dones", "done"),
    "episode_starts": ("episode_starts", "episode_start"),
    "episode_ends": ("episode_ends",),
    "episode_lengths": ("episode_lengths",),
    "episode_index": ("episode_index", "episode_indices", "episode_id", "episode_ids"),
}
OTHER_CONVENTION = frozenset(
    {
        "is_first",
        "is_last",
        "is_terminal",
        "masks",
        "dones_float",
        "discounts",
        "discount",
        "continues",
        "not_dones",
        "nonterminals",
    }
)
"""Ends and rewards whose place in time this reader does not know."""
FLAGS = ("terminated", "truncated", "dones", "episode_starts")


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the episodes of n transitions end.

    Attributes:
        terminated, truncated: ``[n]`` bool, never both.
        stops: ``[episodes]`` the transition after the last one of each episode; the last of them is
            n.
        is_marked: False when nothing in the file says where an episode ends.
    """

    terminated: np.ndarray
    truncated: np.ndarray
    stops: np.ndarray
    is_marked: bool


def match_names(given: Collection[str], source: str) -> tuple[dict[str, str], list[str]]:
    """Which array is which.

    Args:
        given: Names of the arrays of a file or mapping.
        source: What it is, for errors.

    Returns:
        The given name of each known one, and the names that are not known.

    Raises:
        CheckpointError: If two arrays are the same thing, or ends are given in a convention that
            cannot be read.
    """
    known: dict[str, str] = {}
    for ours, names in NAMES.items():
        found = [name for name in names if name in given]
        if len(found) > 1:
            raise CheckpointError(
                f"{source}: holds {found}, which are names of one thing ({ours}); "
                "keep the one that counts"
            )
        if found:
            known[ours] = found[0]
    unknown = sorted(set(given) - set(known.values()))
    if strange := sorted(OTHER_CONVENTION.intersection(unknown)):
        raise CheckpointError(
            f"{source}: holds {strange}, which say when episodes end in another "
            "convention of time; give 'terminated' and "
            "'truncated' of each action instead, with 'rewards' of that action"
        )
    return known, unknown


def find_ends(arrays: Mapping[str, np.ndarray], steps: int, source: str) -> Ends:
    """Where episodes end, from whatever arrays say so.

    ``dones`` alone are terminations. Beside ``truncated`` they are terminations where ``truncated``
    is False; beside ``terminated`` they must agree with it. An episode that stops without a mark
    counts as truncated: a value still follows it.

    Args:
        arrays: By our names; others are ignored.
        steps: n.
        source: For errors.

    Raises:
        CheckpointError: If an array has another length, holds what is no flag, or two of them
            contradict each other.
    """
    flags = {name: _flags(name, arrays[name], steps, source) for name in FLAGS if name in arrays}
    none = np.zeros(steps, bool)
    terminated = flags.get("terminated", none)
    truncated = flags.get("truncated", none)
    dones = flags.get("dones")
    if dones is not None and "terminated" in flags:
        ends = terminated | truncated if "truncated" in flags else terminated
        if "truncated" not in flags and not (terminated & ~dones).any():
            truncated = dones & ~terminated
        elif not np.array_equal(dones, ends) and not np.array_equal(dones, terminated):
            place = int(np.flatnonzero(dones != ends)[0])
            raise CheckpointError(
                f"{source}: 'dones' and 'terminated' disagree, first at transition "
                f"{place}; leave 'dones' out"
            )
    elif dones is not None:
        terminated = dones & ~truncated
    truncated = truncated & ~terminated
    marks = terminated | truncated
    bounds = _bounds(arrays, flags.get("episode_starts"), steps, source)
    is_marked = bool(marks.any()) or bounds is not None
    stops = (
        set((np.flatnonzero(marks) + 1).tolist())
        | set(() if bounds is None else bounds.tolist())
        | {steps}
    )
    ordered = np.array(sorted(stop for stop in stops if stop > 0), np.int64)
    unmarked = ordered[~marks[ordered - 1]] - 1 if steps else ordered[:0]
    truncated[unmarked] = True
    return Ends(terminated, truncated, ordered if steps else ordered[:0], is_marked)


def find_seams(obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
    """Transitions of an episode after which ``obs`` does not go on where ``next_obs`` says that the
    action led to.

    Floats are compared as they are stored, as float32: one of the two may have been rounded.
    """
    if "f" in (obs.dtype.kind, next_obs.dtype.kind):
        with np.errstate(over="ignore"):
            obs = obs.astype(np.float32)
            next_obs = next_obs.astype(np.float32)
    differs = (obs[1 : len(next_obs)] != next_obs[:-1]).reshape(len(next_obs) - 1, -1).any(axis=1)
    return np.flatnonzero(differs) + 1


def cut_note(cuts: int, name: str) -> str:
    """The sentence on seams that :func:`find_seams` found; ``name`` is that of the next
    observations.
    """
    return (
        f"at {cuts} transitions {name!r} is not the observation that follows, and no "
        "end is marked: "
        "episodes are cut there, as by a time limit"
    )


def unused_note(name: str) -> str:
    """The sentence on next observations that each episode's one more ``obs`` says already."""
    return f"arrays that are not used: {name}, because obs has one more entry in each episode"


def flat_note(name: str, shape: tuple[int, ...]) -> str:
    """The sentence on actions of several axes."""
    return f"{name!r} are arrays of {shape}; their {math.prod(shape)} numbers are stored in a row"


def _flags(name: str, values: np.ndarray, steps: int, source: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size != steps:
        raise CheckpointError(
            f"{source}: {name!r} has {array.size} entries and there are {steps} "
            "rewards; give one per action"
        )
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise CheckpointError(
            f"{source}: {name!r} holds other values than False and True (0 and 1); give flags"
        )
    return array.reshape(steps).astype(bool)


def _bounds(
    arrays: Mapping[str, np.ndarray], starts: np.ndarray | None, steps: int, source: str
) -> np.ndarray | None:
    """The stops that lengths, ends or starts of episodes give; None when there are none of them."""
    found: dict[str, np.ndarray] = {}
    if "episode_lengths" in arrays:
        lengths = _whole_numbers("episode_lengths", arrays["episode_lengths"], source)
        found["episode_lengths"] = np.cumsum(lengths)
    if "episode_ends" in arrays:
        found["episode_ends"] = _whole_numbers("episode_ends", arrays["episode_ends"], source)
    if starts is not None:
        found["episode_starts"] = np.append(np.flatnonzero(starts), steps)[
            1 if starts[:1].all() else 0 :
        ]
    if "episode_index" in arrays:
        number = np.asarray(arrays["episode_index"])
        if number.size != steps:
            raise CheckpointError(
                f"{source}: 'episode_index' has {number.size} entries and there are "
                f"{steps} rewards; give one per action"
            )
        number = number.reshape(-1)
        found["episode_index"] = np.append(np.flatnonzero(number[1:] != number[:-1]) + 1, steps)
    for name, stops in found.items():
        is_rising = not (np.diff(stops, prepend=0) < 0).any()
        last = int(stops[-1]) if stops.size else 0
        if not is_rising or last != steps:
            raise CheckpointError(
                f"{source}: {name!r} covers {last} transitions and there are {steps} "
                "rewards; they must agree"
            )
    return np.unique(np.concatenate(list(found.values()))) if found else None


def _whole_numbers(name: str, values: np.ndarray, source: str) -> np.ndarray:
    array = np.asarray(values).reshape(-1)
    if array.dtype.kind not in "iu" or (array.astype(np.int64) < 0).any():
        raise CheckpointError(
            f"{source}: {name!r} holds {array.dtype}, expected whole numbers from 0"
        )
    return array.astype(np.int64)
