"""Episodes as Minari datasets (https://minari.farama.org), the exchange format of offline reinforcement learning.

Observations pass through the same mapping as those of a live env. Bounded actions are scaled to [-1, 1] when they come in; what
goes out says that it is in [-1, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError, ConfigurationError, EnvFailureError, MissingDependencyError
from worldloom.core.sequence import Rows, rows_from_gym, rows_to_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.replay.episode_files import EpisodeFile, check_whole

__all__ = ["minari_files", "read_minari", "write_minari"]

FORMAT = "arrow"


def read_minari(name: str) -> EpisodeFile:
    """Open a dataset that is on this machine.

    Raises:
        CheckpointError: If it is not there or cannot be read.
        ConfigurationError: If its spaces cannot be trained on.
        MissingDependencyError: If minari is not installed.
    """
    from worldloom.envs.spaces import ActionMapper, ObsMapper

    dataset = _load(name)
    observe, act = ObsMapper(dataset.observation_space), ActionMapper(dataset.action_space)
    made_by = getattr(dataset.env_spec, "id", None)
    env = EnvSpec(
        name=f"gym:{made_by}" if made_by else "none",
        obs=observe.specs,
        action=act.specs,
        episode_limit=getattr(dataset.env_spec, "max_episode_steps", None),
    )
    return EpisodeFile(env, _episodes(name, dataset, observe, act))


def write_minari(name: str, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes as a new dataset on this machine.

    Raises:
        ConfigurationError: If a dataset of that name exists, or its name is refused.
        MissingDependencyError: If minari is not installed.
    """
    minari = _minari()
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    buffers: list[Any] = []
    for rows in episodes:
        check_whole(rows, name)
        gym = rows_to_gym(rows)
        if not len(gym["reward"]):
            continue
        buffers.append(
            EpisodeBuffer(
                id=len(buffers),
                observations=_bare(gym["obs"], env.obs),
                actions=_bare(gym["action"], env.action),
                rewards=gym["reward"].tolist(),
                terminations=gym["terminated"].tolist(),
                truncations=gym["truncated"].tolist(),
            )
        )
    all_obs = {key: _space(spec, low=-np.inf) for key, spec in env.obs.items()}
    all_actions = {key: _space(spec, low=-1.0) for key, spec in env.action.items()}
    try:
        _create(minari)(
            name,
            buffer=buffers,
            observation_space=_bare(all_obs, env.obs) if len(all_obs) == 1 else spaces.Dict(all_obs),
            action_space=_bare(all_actions, env.action) if len(all_actions) == 1 else spaces.Dict(all_actions),
            description=f"rows of {env.name} as worldloom stores them; continuous actions lie in [-1, 1]",
            data_format=FORMAT,
            jpeg_encoding=False,
        )
    except (ValueError, AssertionError) as error:
        raise ConfigurationError(f"minari:{name} cannot be made ({error}); choose another name, for example mine-v0") from error


def minari_files(name: str) -> list[Path]:
    """The files that hold a dataset's numbers."""
    root = Path(_load(name).storage.data_path)
    return sorted(path for path in root.rglob("*") if path.is_file())


def _create(minari: Any) -> Any:
    """``create_dataset_from_buffers`` without its advice on authors and links, which do not apply to a private export."""

    def create(*args: Any, **kwargs: Any) -> None:
        """The same call without those warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            minari.create_dataset_from_buffers(*args, **kwargs)

    return create


def _load(name: str) -> Any:
    minari = _minari()
    try:
        return minari.load_dataset(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"minari:{name} cannot be read ({error}); 'minari list local' shows what is there") from error


def _episodes(name: str, dataset: Any, observe: Any, act: Any) -> Iterator[Rows]:
    try:
        for episode in dataset.iterate_episodes():
            steps = len(episode.rewards)
            if not steps:
                continue
            terminated, truncated = (np.asarray(ends, bool).copy() for ends in (episode.terminations, episode.truncations))
            truncated[-1] |= not terminated[-1]
            obs, action = observe(episode.observations, (steps + 1,)), act.inverse(episode.actions, (steps,))
            yield rows_from_gym(obs, action, np.asarray(episode.rewards), terminated, truncated)
    except (OSError, ValueError, KeyError, ImportError, EnvFailureError) as error:
        raise CheckpointError(f"minari:{name}: damaged in the middle, or of another space than it says ({error})") from error


def _bare(group: Any, specs: Any) -> Any:
    """The only entry of a group, or the group."""
    return next(iter(group.values())) if len(specs) == 1 else dict(group)


def _space(spec: ArraySpec, *, low: float) -> Any:
    from gymnasium import spaces

    if spec.is_discrete and not spec.shape:
        return spaces.Discrete(spec.num_classes[0])
    if spec.is_discrete:
        return spaces.MultiDiscrete(np.array(spec.num_classes).reshape(spec.shape))
    if spec.dtype == "uint8":
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.Box(low, -low, spec.shape, np.dtype(spec.dtype).type)


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise MissingDependencyError("a Minari dataset", "minari", "minari") from error
    return minari
