"""Episodes as the library's ``.npz``: what ``ReplayBuffer.save`` writes, and a note of the spaces,
which other readers ignore.

In a file without the note observations are taken as a live env's are (``envs.spaces``: images by
shape and dtype, numbers as float32) and actions as continuous, or as choices where they are whole
numbers. Where the file does not say what an episode's last action led to, its last observation is
repeated: so that action's reward and its end are kept, as ``ReplayBuffer.load`` keeps them, at the
price of one observation per episode that no one made. Who recorded the true one gives ``next_obs``
or ``final_obs``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    EnvFailureError,
    ShapeMismatchError,
)
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import open_plain
from worldloom.core.sequence import Rows, rows_from_gym, rows_to_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.spaces import ObsMapper
from worldloom.training.npz import DAMAGE, FileFacts, is_choice, read_episodes, write_episodes
from worldloom_dist.replay.formats.episode_rows import EpisodeFile, check_whole, single_key

__all__ = ["read_npz", "write_npz"]

NOTE = "env_spec"


def read_npz(path: Path) -> EpisodeFile:
    """Open a file of the library.

    Raises:
        CheckpointError: If it is missing, damaged or foreign; also while episodes are read.
        ConfigurationError: If its observations cannot be trained on.
    """
    facts, episodes = read_episodes(path)
    try:
        env = _noted_env(path)
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: what it says of its spaces is damaged ({first_line(error)})"
        ) from error
    if env is not None:
        opened = EpisodeFile(env, iter(()), facts.notes)
        opened.episodes = _rows(opened, path, episodes, lambda obs: obs)
        return opened
    observe = ObsMapper(_obs_space(facts))
    (key,) = observe.specs
    facts.notes.extend(observe.remarks)
    action = _action_spec(facts, path)
    opened = EpisodeFile(
        EnvSpec(name="none", obs=observe.specs, action={"action": action}), iter(()), facts.notes
    )
    opened.episodes = _rows(opened, path, episodes, lambda obs: observe(obs, obs.shape[:1])[key])
    return opened


def write_npz(path: Path, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes.

    Raises:
        ConfigurationError: If there are several observation or action keys, or an action of several
            choices.
    """
    obs_key = single_key(env.obs, "observation", path)
    action_key = single_key(env.action, "action", path)
    spec = env.action[action_key]
    if spec.is_discrete and spec.shape:
        raise ConfigurationError(
            f"{path}: an .npz cannot hold actions of several choices {spec}; use a "
            "name ending in .parquet"
        )
    if spec.dtype == "float32" and len(spec.shape) != 1:
        raise ConfigurationError(
            f"{path}: an .npz cannot hold actions of shape {spec.shape}; use a name "
            "ending in .parquet"
        )
    width = spec.num_classes[0] if spec.is_discrete else spec.size
    found: list[Rows] = []
    for rows in episodes:
        check_whole(rows, str(path))
        if len(rows["is_first"]) > 1:
            found.append(rows)
    image = env.obs[obs_key]
    write_episodes(
        path,
        (_gym_episode(rows, obs_key, action_key, spec) for rows in found),
        lengths=[len(rows["is_first"]) - 1 for rows in found],
        obs=(image.shape, np.dtype(image.dtype)),
        action_dim=width,
        capacity=sum(len(rows["is_first"]) for rows in found),
        notes={NOTE: np.frombuffer(json.dumps(env.to_dict()).encode(), np.uint8)},
    )


def _gym_episode(rows: Rows, obs_key: str, action_key: str, spec: ArraySpec) -> dict[str, Any]:
    gym = rows_to_gym(rows)
    action = gym["action"][action_key]
    if spec.is_discrete:
        action = np.eye(spec.num_classes[0], dtype=np.float32)[action.astype(np.int64)]
    obs = gym["obs"][obs_key]
    ends = {"dones": gym["terminated"] | gym["truncated"], "truncated": gym["truncated"]}
    return {
        "obs": obs[:-1],
        "actions": action,
        "rewards": gym["reward"],
        "final_obs": obs[-1],
        **ends,
    }


def _noted_env(path: Path) -> EnvSpec | None:
    with open_plain(path) as file, np.load(file, allow_pickle=False) as archive:
        if NOTE not in archive.files:
            return None
        return EnvSpec.from_dict(parse_json(archive[NOTE].tobytes()))


def _obs_space(facts: FileFacts) -> spaces.Box:
    """The space of a live env that would give such observations."""
    if facts.obs_dtype == np.uint8:
        return spaces.Box(0, 255, facts.obs_shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, facts.obs_shape, np.float32)


def _action_spec(facts: FileFacts, path: Path) -> ArraySpec:
    """What shapes and values say; a file without a note knows no names and no limits."""
    actions = facts.actions
    width = math.prod(actions.shape[1:])
    flat = actions.reshape(len(actions), width)
    if width > 1 and flat.size and np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) == 1).all():
        facts.notes.append(f"actions are codes of one among {width} choices")
        return ArraySpec((), "int32", (width,))
    if actions.dtype.kind not in "iu":
        return ArraySpec((facts.action_dim,))
    if actions.size and actions.min() < 0:
        least = int(actions.min())
        raise CheckpointError(
            f"{path}: whole actions count choices from 0, got {least}; renumber them, "
            "or give floats"
        )
    if is_choice(actions):
        return ArraySpec((), "int32", (facts.action_dim,))
    choices = tuple(int(most) + 1 for most in flat.max(axis=0, initial=0))
    facts.notes.append(f"actions are {width} choices at once, among {choices}")
    return ArraySpec(actions.shape[1:], "int32", choices)


def _rows(
    opened: EpisodeFile,
    path: Path,
    episodes: Iterable[dict[str, Any]],
    observe: Callable[[np.ndarray], np.ndarray],
) -> Iterator[Rows]:
    """Rows of every episode; ``observe`` makes an observation of the env of each one in
    the file.
    """
    try:
        [(obs_key, _)], [(action_key, action_spec)] = (
            opened.env.obs.items(),
            opened.env.action.items(),
        )
        for episode in episodes:
            final = episode.get("final_obs")
            opened.repeated += final is None
            obs = np.asarray(episode["obs"])
            last = obs[-1:] if final is None else np.asarray(final)[None]
            ends = episode["truncated"]
            yield rows_from_gym(
                {obs_key: observe(np.concatenate([obs, last]))},
                {action_key: _choices(np.asarray(episode["actions"]), action_spec)},
                _rewards(np.asarray(episode["rewards"]), path),
                episode["dones"] & ~ends,
                ends,
            )
    except (*DAMAGE, TypeError, IndexError, ShapeMismatchError, EnvFailureError) as error:
        raise CheckpointError(
            f"{path}: damaged, or of another space than it says ({first_line(error)})"
        ) from error


def _choices(action: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """Actions in the shape of their spec; codes of a choice become its number."""
    steps = len(action)
    if not spec.is_discrete:
        return action.reshape(steps, *spec.shape)
    is_code = not spec.shape and action.ndim == 2 and action.shape[1] == spec.num_classes[0]
    if is_code and (action.dtype.kind == "f" or action.shape[1] > 1):
        numbers: np.ndarray = action.argmax(-1).astype(spec.dtype)
        return numbers
    return action.reshape(steps, *spec.shape)


def _rewards(reward: np.ndarray, path: Path) -> np.ndarray:
    """Rewards that float32 can hold."""
    with np.errstate(over="ignore"):
        stored = reward.astype(np.float32)
    if not np.isfinite(stored).all():
        step = int(np.flatnonzero(~np.isfinite(stored))[0])
        raise CheckpointError(
            f"{path}: reward {step} of an episode is {reward[step]!s}; rewards must "
            "be finite numbers of float32, so mend the file"
        )
    return stored
