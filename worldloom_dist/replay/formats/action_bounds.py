"""What -1 and 1 of a continuous action mean to an env, so that rows whose actions were scaled by
other bounds are not taken for its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ACTION, EnvSpec

__all__ = ["check_bounds"]

TOLERANCE = 1e-4
"""Of the range: bounds are typed, and stored as float32."""

Ends = tuple[np.ndarray, np.ndarray]


def check_bounds(source: str, recorded: EnvSpec, env: EnvSpec) -> None:
    """Compare the bounds by which a source's actions are scaled with those of a run's env, where
    both are known.

    Raises:
        CheckpointError: If they differ (says how those of the env are given).
    """
    theirs, ours = _ends(recorded), _ends(env)
    for key, (low, high) in ours.items():
        if key not in theirs or theirs[key][0].shape != low.shape:
            continue
        allowed = TOLERANCE * (high - low)
        if all(
            np.all(np.abs(a - b) <= allowed) for a, b in zip(theirs[key], (low, high), strict=True)
        ):
            continue
        word = "bounds" if len(ours) == 1 else f"bounds/{key}"
        raise CheckpointError(
            f"{source}: column {key!r} would be scaled by the bounds {_text(theirs[key])}, and "
            f"those of the run's env are {_text(ours[key])}, so its actions would not be what they "
            f"were; give ?{word}={_text(ours[key])}"
        )


def _ends(env: EnvSpec) -> Mapping[str, Ends]:
    """By key of continuous actions, what -1 and 1 mean; empty where that is not known."""
    from worldloom.envs.leaves import Rescale, action_leaf
    from worldloom.envs.space_json import space_from_json
    from worldloom.envs.spaces import walk

    if ACTION not in env.spaces or env.tasks:
        return {}
    ends = {}
    for key, path, space in walk(space_from_json(env.spaces[ACTION]), ACTION):
        scaled = action_leaf(key, path, space).convert
        if isinstance(scaled, Rescale):
            ends[key] = scaled.shift - scaled.scale, scaled.shift + scaled.scale
    return ends


def _text(ends: Ends) -> str:
    """As a name says bounds: ``LOW:HIGH``, or all numbers with slashes where they differ."""
    return ":".join(
        "/".join(f"{number:g}" for number in (one.flat[:1] if np.ptp(one) == 0 else one.flat))
        for one in ends
    )
