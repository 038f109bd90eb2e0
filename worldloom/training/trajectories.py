"""Trajectories that a user holds in memory, taken apart as a file of episodes is: what
``ReplayBuffer.load`` makes of arrays in an ``.npz``, ``from_trajectories`` makes of the same
arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

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

__all__ = ["Taken", "cut_episodes", "split_trajectory"]


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
    led_to = None if following is None else _Held(following)
    finals = {} if final is None else {len(reward): final}
    taken = _Held(obs)
    next_name = names.get("next_obs", "")
    cut = cut_episodes(ends, actions, reward, taken, led_to, extra, finals, next_name, notes)
    return list(cut), notes


class Taken(Protocol):
    """An array whose rows are taken in order."""

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows."""


class _Held:
    """An array in memory as :class:`Taken`."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._taken = 0

    def take(self, count: int) -> np.ndarray:
        """See :class:`Taken`."""
        before = self._taken
        self._taken += count
        return self._array[before : self._taken]


def cut_episodes(
    ends: Ends,
    actions: np.ndarray,
    rewards: np.ndarray,
    obs: Taken,
    following: Taken | None,
    extra: int,
    finals: Mapping[int, Any],
    next_name: str,
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """Arguments of ``ReplayBuffer.add_episode`` for each episode, in order.

    Args:
        ends: Where episodes end.
        actions, rewards: ``[n, ...]`` and ``[n]``.
        obs: Observations, ``extra`` more than actions in each episode.
        following: What each action led to; where an episode does not go on there, it is cut.
        extra: 1 where each episode has one observation more than actions, else 0.
        finals: Final observations by the transition after the episode's last one; they win.
        next_name: What the source calls ``following``.
        notes: Gets a sentence on cuts where no end is marked, once all episodes are taken.
    """
    start = 0
    cuts = 0
    for stop in ends.stops.tolist():
        seen = obs.take(stop - start + extra)
        led_to = None if following is None else following.take(stop - start)
        seams = [] if led_to is None else (start + find_seams(seen, led_to)).tolist()
        cuts += len(seams)
        for begin, end in itertools.pairwise([start, *seams, stop]):
            truncated = ends.truncated[begin:end].copy()
            truncated[-1] |= not ends.terminated[end - 1]
            episode = {
                "obs": seen[begin - start : end - start],
                "actions": actions[begin:end],
                "rewards": rewards[begin:end],
                "dones": ends.terminated[begin:end] | truncated,
                "truncated": truncated,
            }
            if end in finals:
                episode["final_obs"] = finals[end]
            elif extra:
                episode["final_obs"] = seen[-1]
            elif led_to is not None:
                episode["final_obs"] = led_to[end - start - 1]
            yield episode
        start = stop
    if cuts:
        notes.append(cut_note(cuts, next_name))


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
