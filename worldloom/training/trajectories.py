"""Trajectories that a user holds in memory, taken apart as a file of episodes is: what
``ReplayBuffer.load`` makes of arrays in an ``.npz``, ``from_trajectories`` makes of the same
arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldloom.core.exceptions import BufferError, CheckpointError
from worldloom.training.array_names import (
    NAMES,
    Ends,
    cut_note,
    find_ends,
    find_seams,
    flat_note,
    match_names,
    unused_note,
)

__all__ = ["split_trajectory"]


def split_trajectory(
    trajectory: Mapping[str, Any], source: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Arguments of ``ReplayBuffer.add_episode`` for each episode in a mapping that may use other
    names for them, and sentences on what is not used or had to be concluded.

    Raises:
        BufferError: If an array is missing, not known, or contradicts another.
    """
    if not isinstance(trajectory, Mapping):
        raise BufferError(
            f"{source}: is {type(trajectory).__name__}; give a dict of obs, actions, "
            "rewards and its end"
        )
    given = {name: values for name, values in trajectory.items() if values is not None}
    final = given.pop("final_obs", None)
    try:
        known, unknown = match_names(given, source)
        needed = ("obs", "actions", "rewards")
        if unknown or not set(needed) <= set(known):
            raise CheckpointError(
                f"{source}: has {sorted(map(str, given))}; give obs, actions, rewards "
                "and its end, and nothing else"
            )
        arrays = {name: _array_of(given[theirs], theirs, source) for name, theirs in known.items()}
        steps = arrays["rewards"].size
        ends = find_ends(arrays, steps, source)
        _check_lengths(arrays, ends, steps, source)
    except CheckpointError as error:
        raise BufferError(str(error)) from error
    return _parts(arrays, ends, final, known)


def _check_lengths(arrays: Mapping[str, np.ndarray], ends: Ends, steps: int, source: str) -> None:
    obs = arrays["obs"]
    actions = arrays["actions"]
    following = arrays.get("next_obs")
    if len(obs) not in (steps, steps + len(ends.stops)) or len(actions) != steps:
        lengths = {name: len(arrays[name]) for name in ("obs", "actions")}
        raise CheckpointError(
            f"{source}: arrays have different lengths {lengths | {'rewards': steps}}; "
            "give one entry per action, or one more obs in each episode"
        )
    if len(arrays["rewards"]) != steps:
        shape = arrays["rewards"].shape
        raise CheckpointError(f"{source}: 'rewards' has shape {shape}; give one number per action")
    if following is not None and following.shape != (steps, *obs.shape[1:]):
        expected = (steps, *obs.shape[1:])
        raise CheckpointError(
            f"{source}: 'next_obs' has shape {following.shape}, expected {expected}"
        )


def _parts(
    arrays: dict[str, np.ndarray], ends: Ends, final: Any, names: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The episodes of arrays that agree, and what there is to say of them."""
    obs = arrays["obs"]
    actions = arrays["actions"]
    following = arrays.get("next_obs")
    reward = arrays["rewards"].reshape(-1)
    notes: list[str] = []
    extra = int(len(obs) != len(reward))
    if extra and following is not None:
        notes.append(unused_note(names["next_obs"]))
        following = None
    if actions.ndim > 2 and actions.dtype.kind == "f":
        notes.append(flat_note(names["actions"], actions.shape[1:]))
        actions = actions.reshape(len(actions), math.prod(actions.shape[1:]))
    episodes: list[dict[str, Any]] = []
    cuts = 0
    start = 0
    for number, stop in enumerate(ends.stops.tolist()):
        shift = number * extra
        bounds = [start, stop]
        if following is not None:
            seams = start + find_seams(obs[start:stop], following[start:stop])
            bounds = [start, *seams.tolist(), stop]
            cuts += len(seams)
        for begin, end in itertools.pairwise(bounds):
            truncated = ends.truncated[begin:end].copy()
            truncated[-1] |= not ends.terminated[end - 1]
            last = None if following is None else following[end - 1]
            if extra:
                last = obs[end + shift]
            if final is not None and end == len(reward):
                last = final
            episodes.append(
                {
                    "obs": obs[begin + shift : end + shift],
                    "actions": actions[begin:end],
                    "rewards": reward[begin:end],
                    "dones": ends.terminated[begin:end] | truncated,
                    "truncated": truncated,
                    "final_obs": last,
                }
            )
        start = stop
    if cuts:
        notes.append(cut_note(cuts, names["next_obs"]))
    return episodes, notes


def _array_of(values: Any, name: str, source: str) -> np.ndarray:
    """What a user gave as an array of numbers; flags of a choice are its number."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: {name!r} is no array ({error}); give entries of one shape"
        ) from error
    if not array.ndim or array.dtype.kind not in "biuf":
        raise CheckpointError(
            f"{source}: {name!r} is {array.dtype} of shape {array.shape}; give "
            "numbers, one entry per action"
        )
    return array.astype(np.int8) if array.dtype.kind == "b" and name in NAMES["actions"] else array
