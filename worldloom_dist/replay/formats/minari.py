"""Episodes as Minari datasets (https://minari.farama.org), the exchange format of offline
reinforcement learning.

Observations pass through the same mapping as those of a live env. Actions are scaled by finite
bounds to [-1, 1] when they come in, and never clipped: one that lies outside is refused when it is
stored, as from any other file. What goes out says that it is in [-1, 1], and appears under its name
whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    EnvFailureError,
    MissingDependencyError,
)
from worldloom.core.files import staging_folder
from worldloom.core.plain_files import check_plain
from worldloom.core.sequence import Rows, rows_from_gym, rows_to_gym
from worldloom.core.specs import EnvSpec
from worldloom_dist.replay.formats.episode_rows import EpisodeFile, bare, check_whole, gym_space

__all__ = ["minari_files", "read_minari", "write_minari"]

FORMAT = "arrow"
ROOT_VARIABLE = "MINARI_DATASETS_PATH"


def read_minari(name: str) -> EpisodeFile:
    """Open a dataset that is on this machine.

    Raises:
        CheckpointError: If it is not there or cannot be read.
        ConfigurationError: If its spaces cannot be trained on.
        MissingDependencyError: If minari is not installed.
    """
    from worldloom.envs.space_json import spaces_to_json
    from worldloom.envs.spaces import ActionMapper, ObsMapper

    dataset = _load(name)
    observe = ObsMapper(dataset.observation_space)
    act = ActionMapper(dataset.action_space)
    made_by = getattr(dataset.env_spec, "id", None)
    env = EnvSpec(
        name=f"gym:{made_by}" if made_by else "none",
        obs=observe.specs,
        action=act.specs,
        episode_limit=getattr(dataset.env_spec, "max_episode_steps", None),
        spaces=spaces_to_json(dataset.observation_space, dataset.action_space),
    )
    opened = EpisodeFile(env, iter(()), list(observe.remarks))
    opened.episodes = _episodes(name, dataset, observe, act, opened)
    return opened


def write_minari(name: str, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes as a new dataset on this machine; all of them are in memory meanwhile.

    Raises:
        ConfigurationError: If a dataset of that name exists, or its name is refused.
        MissingDependencyError: If minari is not installed.
    """
    minari = _minari()
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    observations = {key: gym_space(spec, low=-np.inf) for key, spec in env.obs.items()}
    actions = {key: gym_space(spec, low=-1.0) for key, spec in env.action.items()}
    buffers: list[Any] = []
    for rows in episodes:
        check_whole(rows, name)
        gym = rows_to_gym(rows)
        if not len(gym["reward"]):
            continue
        buffers.append(
            EpisodeBuffer(
                id=len(buffers),
                observations=_in_dtypes_of(observations, gym["obs"]),
                actions=_in_dtypes_of(actions, gym["action"]),
                rewards=gym["reward"].tolist(),
                terminations=gym["terminated"].tolist(),
                truncations=gym["truncated"].tolist(),
            )
        )
    with _appearing(minari, name), warnings.catch_warnings():
        # advice on authors and links, which a private export has not
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            name,
            buffer=buffers,
            observation_space=bare(observations)
            if len(observations) == 1
            else spaces.Dict(observations),
            action_space=bare(actions) if len(actions) == 1 else spaces.Dict(actions),
            description=(
                f"rows of {env.name} as worldloom stores them; continuous actions lie in [-1, 1]"
            ),
            data_format=FORMAT,
            jpeg_encoding=False,
        )


@contextlib.contextmanager
def _appearing(minari: Any, name: str) -> Iterator[None]:
    """While a dataset is made, its root is a hidden folder beside the others; then one rename gives
    it its place.

    Raises:
        ConfigurationError: If it cannot be made under this name; nothing is left of it then.
    """
    from minari.storage.datasets_root_dir import get_dataset_path

    root = Path(get_dataset_path())
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or (root / name).exists():
        reason = (
            "it exists already"
            if parts and (root / name).exists()
            else "that is no name of a dataset"
        )
        raise ConfigurationError(
            f"minari:{name} cannot be made ({reason}); choose another name, for example mine-v0"
        )
    before = os.environ.get(ROOT_VARIABLE)
    try:
        with staging_folder(root, ".worldloom") as hidden:
            os.environ[ROOT_VARIABLE] = str(hidden)
            yield
            depth = next(
                depth
                for depth in range(1, len(parts) + 1)
                if not root.joinpath(*parts[:depth]).exists()
            )
            hidden.joinpath(*parts[:depth]).rename(root.joinpath(*parts[:depth]))
            shutil.rmtree(hidden, ignore_errors=True)
    except (ValueError, TypeError, AssertionError, NotImplementedError, StopIteration) as error:
        raise ConfigurationError(
            f"minari:{name} cannot be made"
            f" ({first_line(error)}); choose another name, for example mine-v0"
        ) from error
    finally:
        if before is None:
            os.environ.pop(ROOT_VARIABLE, None)
        else:
            os.environ[ROOT_VARIABLE] = before


def minari_files(name: str) -> list[Path]:
    """The files that hold a dataset's numbers."""
    root = Path(_load(name).storage.data_path)
    return sorted(path for path in root.rglob("*") if path.is_file())


def _load(name: str) -> Any:
    minari = _minari()
    from minari.storage import get_dataset_path

    try:
        for path in Path(get_dataset_path(name)).rglob("*"):
            if not path.is_dir():
                check_plain(path)
        return minari.load_dataset(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"minari:{name} cannot be read"
            f" ({first_line(error)}); 'minari list local' shows what is there"
        ) from error


def _episodes(
    name: str, dataset: Any, observe: Any, act: Any, opened: EpisodeFile
) -> Iterator[Rows]:
    infos: set[str] = set()
    unmarked = 0
    try:
        for episode in dataset.iterate_episodes():
            infos.update(getattr(episode, "infos", None) or ())
            steps = len(episode.rewards)
            if not steps:
                continue
            terminated = np.asarray(episode.terminations, bool)
            truncated = np.asarray(episode.truncations, bool) & ~terminated
            if not terminated[-1] and not truncated[-1]:
                truncated[-1] = True
                unmarked += 1
            obs = observe(episode.observations, (steps + 1,))
            action = act.inverse(episode.actions, (steps,))
            yield rows_from_gym(obs, action, np.asarray(episode.rewards), terminated, truncated)
    except (OSError, ValueError, KeyError, ImportError, EnvFailureError) as error:
        raise CheckpointError(
            f"minari:{name}: damaged in the middle, or of another space than it says"
            f" ({first_line(error)})"
        ) from error
    if infos:
        opened.notes.append(f"infos that are not used: {', '.join(sorted(map(str, infos)))}")
    if unmarked:
        opened.notes.append(f"{unmarked} episodes have no end in the file; they count as truncated")


def _in_dtypes_of(spaces: Any, values: Any) -> Any:
    """Arrays in the dtypes that their spaces have, which Arrow insists on."""
    return bare({key: np.asarray(value, spaces[key].dtype) for key, value in values.items()})


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise MissingDependencyError("a Minari dataset", "minari", "minari") from error
    return minari
