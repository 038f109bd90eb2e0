"""Episodes as the library's ``.npz``: what ``ReplayBuffer.save`` writes, and a note of the spaces, which other readers ignore.

A file without the note is read as continuous actions (or, if they are whole numbers, as choices). A transition whose outcome the
file does not hold (no ``final_obs``) is left out, because a run stores no made-up observation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.sequence import Rows, rows_from_gym, rows_to_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training.npz import DAMAGE, FileFacts, read_episodes, write_episodes
from worldloom_dist.replay.episode_files import EpisodeFile, check_whole, single_key

__all__ = ["read_npz", "write_npz"]

NOTE = "env_spec"


def read_npz(path: Path) -> EpisodeFile:
    """Open a file of the library.

    Raises:
        CheckpointError: If it is missing, damaged or foreign; also while episodes are read.
    """
    facts, episodes = read_episodes(path)
    try:
        env = _noted_env(path) or _guessed_env(path, facts)
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: what it says of its spaces is damaged ({error})") from error
    opened = EpisodeFile(env, iter(()))
    opened.episodes = _rows(opened, path, episodes)
    return opened


def write_npz(path: Path, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes.

    Raises:
        ConfigurationError: If there are several observation or action keys, or an action of several choices.
    """
    obs_key = single_key(env.obs, "observation", path)
    action_key = single_key(env.action, "action", path)
    spec = env.action[action_key]
    if spec.is_discrete and spec.shape:
        raise ConfigurationError(f"{path}: an .npz cannot hold actions of several choices {spec}; use a name ending in .parquet")
    if spec.dtype == "float32" and len(spec.shape) != 1:
        raise ConfigurationError(f"{path}: an .npz cannot hold actions of shape {spec.shape}; use a name ending in .parquet")
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
    return {"obs": obs[:-1], "actions": action, "rewards": gym["reward"], "final_obs": obs[-1], **ends}


def _noted_env(path: Path) -> EnvSpec | None:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if NOTE not in archive.files:
            return None
        return EnvSpec.from_dict(json.loads(archive[NOTE].tobytes()))


def _guessed_env(path: Path, facts: FileFacts) -> EnvSpec:
    """What shapes and dtypes say; a file without a note knows no names and no limits."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        actions = archive["actions"]
    if actions.dtype.kind in "iu":
        classes = max(facts.action_dim, int(actions.max(initial=0)) + 1)
        action = ArraySpec((), "int32", (classes,))
    else:
        action = ArraySpec((facts.action_dim,))
    return EnvSpec(name="none", obs={"obs": ArraySpec(facts.obs_shape, facts.obs_dtype.name)}, action={"action": action})


def _rows(opened: EpisodeFile, path: Path, episodes: Iterable[dict[str, Any]]) -> Iterator[Rows]:
    try:
        [(obs_key, _)], [(action_key, action_spec)] = opened.env.obs.items(), opened.env.action.items()
        for episode in episodes:
            for part in _parts(episode):
                if part["obs_after"] is None:
                    opened.left_out += 1
                rows = _episode_rows(part, obs_key, action_key, action_spec)
                if rows is not None:
                    yield rows
    except (*DAMAGE, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def _parts(episode: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry of the file, split where an end lies inside it."""
    steps = len(episode["rewards"])
    cut = np.asarray(episode.get("truncated", np.zeros(steps)), bool).reshape(steps)
    ended = np.asarray(episode.get("dones", np.zeros(steps)), bool).reshape(steps) & ~cut
    bounds = [*(np.flatnonzero((ended | cut)[:-1]) + 1).tolist(), steps]
    for start, stop in zip([0, *bounds], bounds, strict=False):
        yield {
            "obs": np.asarray(episode["obs"][start:stop]),
            "obs_after": episode.get("final_obs") if stop == steps else None,
            "action": np.asarray(episode["actions"][start:stop]),
            "reward": np.asarray(episode["rewards"][start:stop], np.float32).reshape(-1),
            "is_terminal": bool(ended[stop - 1]),
        }


def _episode_rows(part: dict[str, Any], obs_key: str, action_key: str, spec: ArraySpec) -> Rows | None:
    """Rows of one episode; without the last observation it ends, truncated, one transition earlier."""
    obs, action, reward, is_terminal = part["obs"], part["action"], part["reward"], part["is_terminal"]
    if part["obs_after"] is None:
        action, reward, is_terminal = action[:-1], reward[:-1], False
    else:
        obs = np.concatenate([obs, np.asarray(part["obs_after"], obs.dtype).reshape(1, *obs.shape[1:])])
    steps = len(reward)
    if not steps:
        return None
    if spec.is_discrete:
        is_code = action.ndim > 1 and action.shape[-1] == spec.num_classes[0] > 1
        action = (action.argmax(-1) if is_code else action.reshape(steps)).astype(spec.dtype)
    end = np.arange(steps) == steps - 1
    return rows_from_gym(
        {obs_key: obs},
        {action_key: action.reshape(steps, *spec.shape).astype(spec.dtype)},
        reward,
        end & is_terminal,
        end & (not is_terminal),
    )
