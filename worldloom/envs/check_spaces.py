"""Does an env keep to the spaces that it declares, and what do they leave to an agent? A part of
``worldloom.envs.check``.

N envs (of a vector env, else one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.images import MIN_IMAGE_SIDE
from worldloom.core.specs import ACTION, OBS, EnvSpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.contract import Resetter, call_step, close_env
from worldloom.envs.factory import make_raw
from worldloom.envs.leaves import has_bounds
from worldloom.envs.spaces import ActionMapper, ObsMapper, find, walk
from worldloom.envs.vector import RandomActions
from worldloom.envs.vector_contract import VectorResetter
from worldloom.envs.wrappers import RawEnv, own_repeat, repeat_remark

__all__ = ["Finding", "image_findings", "space_findings"]

LARGE_IMAGE = 128
VAST = 1e6
"""Half the width of an action Box from which on float32 and exploration steer coarsely."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to change.

    Attributes:
        is_error: True when training on this env would be wrong; False for advice.
        text: What was seen, and what to do about it.
    """

    is_error: bool
    text: str


def space_findings(config: EnvConfig, *, steps: int, seed: int) -> list[Finding]:
    """Step the env itself, without our wrappers, and hold what it gives against its spaces.

    Args:
        config: Which env.
        steps: How many steps.
        seed: Of env and actions.
    """
    raw = make_raw(config.resolved(), 1)
    if isinstance(raw, RawEnv):
        env = raw.env
        num_envs = None
        space = raw.env.observation_space
        action_space = raw.env.action_space
        reset: Any = Resetter(env, config.env)
    else:
        env = raw
        num_envs = raw.num_envs
        space = raw.single_observation_space
        action_space = raw.single_action_space
        reset = VectorResetter(env, config.env)
    watch = _Watch(space)
    map_action = ActionMapper(action_space)
    choose = RandomActions(
        EnvSpec(name=config.env, obs={}, action=map_action.specs), num_envs or 1, seed
    )
    try:
        watch.see(reset(seed))
        for _ in range(steps):
            native = (
                map_action.rows(choose(), 1)[0]
                if num_envs is None
                else map_action(choose(), (num_envs,))
            )
            obs, _, terminated, truncated, _ = call_step(env, native)
            watch.see(obs)
            if np.any(np.asarray(terminated)) or np.any(np.asarray(truncated)):
                watch.see(reset(None))
    finally:
        close_env(env)
    remarks = ObsMapper(space).remarks
    own = own_repeat(env)
    ours = config.action_repeat or 1
    if own > 1 and ours > 1:
        remarks.append(repeat_remark(own, ours))
    return [
        *watch.findings.values(),
        *(Finding(False, remark) for remark in remarks),
        *_action_findings(action_space),
    ]


def image_findings(spec: EnvSpec) -> list[Finding]:
    """Images that are too small or too large for an agent."""
    found = []
    for key, array in spec.obs.items():
        size = " x ".join(map(str, array.shape[:2]))
        if array.is_image and min(array.shape[:2]) < MIN_IMAGE_SIDE:
            remedy = (
                "--env.image-size 64 enlarges it, and in a Box of float32 it is read as numbers"
            )
            found.append(
                Finding(
                    True,
                    f"image {key!r} is {size}, and agents take {MIN_IMAGE_SIDE} x "
                    f"{MIN_IMAGE_SIDE} or more; {remedy}",
                )
            )
        elif array.is_image and max(array.shape[:2]) > LARGE_IMAGE:
            text = (
                f"image {key!r} is {size}; --env.image-size 64 makes it cheaper to store "
                "and to learn from"
            )
            found.append(Finding(False, text))
    return found


class _Watch:
    """Holds observations against their space; keeps the first finding of every key."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._leaves = walk(space, OBS)
        self._keys = set(map(str, space.spaces)) if isinstance(space, spaces.Dict) else set()
        self.findings: dict[str, Finding] = {}

    def see(self, obs: Any) -> None:
        """Look at one observation (with any leading axes)."""
        self._see_keys(obs)
        for key, path, space in self._leaves:
            if key not in self.findings and (
                finding := _misfit(key, space, np.asarray(find(obs, path)))
            ):
                self.findings[key] = finding

    def _see_keys(self, obs: Any) -> None:
        unknown = sorted(set(map(str, obs)) - self._keys) if isinstance(obs, dict) else []
        if unknown and self._keys:
            text = (
                f"observations have the keys {unknown}, which their space lacks, so "
                "agents do not see them; add them to the space"
            )
            self.findings.setdefault("keys of the space", Finding(False, text))


def _misfit(key: str, space: Any, value: np.ndarray) -> Finding | None:
    wants_whole = space.dtype is not None and np.dtype(space.dtype).kind in "biu"
    if wants_whole and value.dtype.kind not in "biu":
        text = (
            f"observation {key!r} is {value.dtype} and its space says {space.dtype}; "
            f"return {space.dtype}, or declare float32"
        )
        return Finding(not isinstance(space, spaces.Box), text)
    if not isinstance(space, spaces.Box):
        return None
    value = value if wants_whole else value.astype(space.dtype)
    outside = np.argwhere((value < space.low) | (value > space.high))
    if not outside.size:
        return None
    where = tuple(outside[0])
    own = where[value.ndim - space.low.ndim :]
    return Finding(
        False,
        f"observation {key!r} was {value[where]:g} where its bounds are "
        f"[{space.low[own]:g}, {space.high[own]:g}]; "
        "agents do not need bounds, but mend what is wrong, the number or the bound",
    )


def _action_findings(space: Any) -> list[Finding]:
    """Boxes without two bounds, where an agent's [-1, 1] is not scaled but cut
    (``envs.spaces.ActionMapper``), and vast ones.
    """
    found = []
    for key, _, leaf in walk(space, ACTION):
        if not isinstance(leaf, spaces.Box):
            continue
        low = leaf.low.reshape(-1).astype(np.float64)
        high = leaf.high.reshape(-1).astype(np.float64)
        is_open = ~has_bounds(leaf).reshape(-1)
        least = np.clip(-1.0, low, high)
        most = np.clip(1.0, low, high)
        if is_open.any():
            index = int(np.argmax(is_open))
            text = (
                f"action {key!r} has the bounds [{low[index]:g}, {high[index]:g}], "
                "and an agent acts in [-1, 1], which is scaled "
                f"to finite bounds only, so only [{least[index]:g}, {most[index]:g}] "
                "is used; give the Box two finite bounds"
            )
            found.append(Finding(False, text))
        is_vast = ~is_open & (high / 2 - low / 2 > VAST)
        if is_vast.any():
            index = int(np.argmax(is_vast))
            text = (
                f"action {key!r} has the bounds [{low[index]:g}, {high[index]:g}], so "
                "the least that an agent can change (about "
                f"1e-7 of [-1, 1]) is {(high[index] / 2 - low[index] / 2) * 1e-7:.2g} "
                "there; scale the action inside the env"
            )
            found.append(Finding(False, text))
        if not leaf.shape or (low < high).any():
            continue
        found.append(
            Finding(
                False,
                f"action {key!r} has equal low and high bounds, so it changes "
                "nothing; leave it out",
            )
        )
    return found
