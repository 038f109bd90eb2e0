"""Episodes as RLlib records and reads them offline: a folder of Parquet files, each line one
``SingleAgentEpisode``, packed by msgpack (``config.offline_data(output_write_episodes=True)``).

What RLlib itself uses to unpack them falls back to pickle for arrays of objects, here and in its
spaces; this reader takes numbers only. An episode that RLlib cut into pieces is put together again.
Actions are those that the env got where the file has them, scaled by finite bounds to [-1, 1]; what
goes out is in [-1, 1], as its space says.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
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
from worldloom.core.files import replacing_together
from worldloom.core.sequence import Rows, rows_from_gym, rows_to_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.replay.formats.episode_rows import EpisodeFile, bare, check_whole, gym_space
from worldloom_dist.replay.formats.rllib_spaces import space_from_rllib, space_to_rllib

__all__ = ["read_rllib", "rllib_files", "write_rllib"]

ITEM = "item"
FOR_ENV = "actions_for_env"
EPISODES_PER_FILE = 256


def rllib_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder that RLlib wrote to, in the order in which they are read.

    Raises:
        CheckpointError: If there are none.
    """
    found = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not found:
        raise CheckpointError(
            f"rllib:{folder} holds no Parquet file; name what config.offline_data(output=...) names"
        )
    return found


def read_rllib(folder: Path) -> EpisodeFile:
    """Open what RLlib recorded.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind; also while episodes are read.
        ConfigurationError: If its spaces cannot be trained on.
    """
    from worldloom.envs.space_json import spaces_to_json
    from worldloom.envs.spaces import ActionMapper, ObsMapper

    files = rllib_files(folder)
    first = next(_states(files[:1]), None)
    if first is None:
        raise CheckpointError(f"rllib:{folder}: {files[0].name} has no episode")
    observed, acted = _spaces(files[0], first)
    observe = ObsMapper(observed)
    act = ActionMapper(acted)
    env = EnvSpec(
        name="none",
        obs=observe.specs,
        action=act.specs,
        spaces=spaces_to_json(observed, acted),
    )
    opened = EpisodeFile(env, iter(()), list(observe.remarks))
    opened.episodes = _episodes(folder, files, observe, act, opened)
    return opened


def write_rllib(folder: Path, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes that ``config.offline_data(input_=[FOLDER],
    input_read_episodes=True)`` reads; needs msgpack-numpy there, not here.

    Raises:
        ConfigurationError: If the folder exists and is not empty.
    """
    arrow, parquet = _pyarrow()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"rllib:{folder} is there already; name a new folder")
    observed = space_to_rllib(_space_of(env.obs, low=-np.inf))
    acted = space_to_rllib(_space_of(env.action, low=-1.0))
    lines: list[bytes] = []
    number = 0

    def flush() -> None:
        nonlocal number
        table = arrow.table({ITEM: arrow.array(lines, arrow.binary())})
        parquet.write_table(table, staging / f"episodes-{number:06d}.parquet")
        lines.clear()
        number += 1

    with replacing_together(folder) as staging:
        for count, rows in enumerate(episodes):
            check_whole(rows, str(folder))
            gym = rows_to_gym(rows)
            if not len(gym["reward"]):
                continue
            lines.append(pack(_state(f"{env.name}-{count}", gym, observed, acted)))
            if len(lines) == EPISODES_PER_FILE:
                flush()
        if lines or not number:
            flush()


def _state(
    name: str, gym: Mapping[str, Any], observed: Mapping[str, Any], acted: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``SingleAgentEpisode.get_state`` gives for a whole episode."""
    steps = len(gym["reward"])

    def buffer(data: list[Any], space: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {"data": data, "lookback": 0, "finalized": False, "space": space}

    return {
        "id_": name,
        "agent_id": None,
        "module_id": None,
        "multi_agent_episode_id": None,
        "observations": buffer(_items(gym["obs"], steps + 1), observed),
        "actions": buffer(_items(gym["action"], steps), acted),
        "rewards": buffer([float(reward) for reward in gym["reward"]]),
        "infos": buffer([{} for _ in range(steps + 1)]),
        "extra_model_outputs": None,
        "is_terminated": bool(gym["terminated"][-1]),
        "is_truncated": bool(gym["truncated"][-1]),
        "t_started": 0,
        "t": steps,
        "_observation_space": observed,
        "_action_space": acted,
        "_start_time": None,
        "_last_step_time": None,
        "custom_data": {},
    }


def pack(state: Mapping[str, Any]) -> bytes:
    """An episode's state as RLlib packs it: msgpack, arrays as msgpack-numpy writes them."""
    import msgpack

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
            array = np.ascontiguousarray(value)
            described = {b"type": array.dtype.str, b"data": array.tobytes()}
            if isinstance(value, np.generic):
                return {b"nd": False, **described}
            return {b"nd": True, b"kind": b"", b"shape": list(value.shape), **described}
        if isinstance(value, np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} cannot be written to an episode of RLlib")

    return bytes(msgpack.packb(state, default=packed))


def unpack(item: bytes) -> Any:
    """Inverse of :func:`pack`; never unpickles: an array of Python objects is None.

    Raises:
        ValueError: If it is not such a state.
    """
    import msgpack

    try:
        return msgpack.unpackb(item, object_hook=_unpacked, strict_map_key=False)
    except (msgpack.exceptions.UnpackException, msgpack.exceptions.ExtraData) as error:
        raise ValueError(f"not packed by msgpack ({first_line(error)})") from error


def _unpacked(found: dict[Any, Any]) -> Any:
    kind = found.get(b"nd", found.get("nd"))
    if kind is None:
        return found
    described = {key.decode() if isinstance(key, bytes) else key: v for key, v in found.items()}
    if not isinstance(described["type"], str | bytes) or _text(described.get("kind", "")) == "O":
        return None  # an array of Python objects, which only pickle could read
    dtype = np.dtype(_text(described["type"]))
    data = described["data"]
    array = np.frombuffer(data, dtype)
    return array.reshape(described["shape"]) if kind else array[0]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _states(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """One packed episode, or piece of one, after the other."""
    arrow, parquet = _pyarrow()
    for path in files:
        try:
            file = parquet.ParquetFile(path)
            if ITEM not in file.schema_arrow.names:
                raise CheckpointError(
                    f"{path}: holds {file.schema_arrow.names} and no episodes; record with "
                    "config.offline_data(output_write_episodes=True)"
                )
            for batch in file.iter_batches(batch_size=1, columns=[ITEM]):
                state = unpack(batch.column(0)[0].as_py())
                if not isinstance(state, dict):
                    raise ValueError("an episode that is no mapping")
                yield state
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
            raise CheckpointError(
                f"{path}: holds no episodes of RLlib ({first_line(error)})"
            ) from error


def _episodes(
    folder: Path, files: list[Path], observe: Any, act: Any, opened: EpisodeFile
) -> Iterator[Rows]:
    """Whole episodes: pieces are put together by their id, in the order in which they come."""
    open_pieces: dict[str, list[dict[str, Any]]] = {}
    unmarked = 0
    try:
        for state in _states(files):
            pieces = open_pieces.setdefault(_text(state["id_"]), [])
            pieces.append(state)
            if state["is_terminated"] or state["is_truncated"]:
                del open_pieces[_text(state["id_"])]
                yield _rows(folder, pieces, observe, act)
        for pieces in open_pieces.values():
            pieces[-1]["is_truncated"] = True
            unmarked += 1
            yield _rows(folder, pieces, observe, act)
    except (KeyError, ValueError, TypeError, IndexError, EnvFailureError) as error:
        raise CheckpointError(
            f"rllib:{folder}: an episode cannot be read ({first_line(error)})"
        ) from error
    if unmarked:
        opened.notes.append(
            f"{unmarked} episodes have no end in the files; they count as truncated"
        )


def _rows(folder: Path, pieces: list[dict[str, Any]], observe: Any, act: Any) -> Rows:
    pieces = sorted(pieces, key=lambda state: int(state["t_started"]))
    done = 0
    for state in pieces:
        if int(state["t_started"]) != done:
            raise CheckpointError(
                f"rllib:{folder}: of episode {_text(state['id_'])} the steps {done} to "
                f"{int(state['t_started']) - 1} are missing; give the folder with all its files"
            )
        done = int(state["t"])
    observations: list[Any] = []
    actions: list[Any] = []
    rewards: list[Any] = []
    for state in pieces:
        seen = _buffer(state["observations"])
        # the last observation of a piece is the first one of the next
        observations += seen if not observations else seen[1:]
        extra = state.get("extra_model_outputs") or {}
        actions += _buffer(extra[FOR_ENV] if FOR_ENV in extra else state["actions"])
        rewards += _buffer(state["rewards"])
    steps = len(rewards)
    if not steps or len(actions) != steps or len(observations) != steps + 1:
        raise ValueError(
            f"{len(observations)} observations, {len(actions)} actions and {steps} rewards"
        )
    terminated = np.zeros(steps, bool)
    truncated = np.zeros(steps, bool)
    terminated[-1] = bool(pieces[-1]["is_terminated"])
    truncated[-1] = not terminated[-1]
    obs = observe(_stacked(observations), (steps + 1,))
    action = act.inverse(_stacked(actions), (steps,))
    return rows_from_gym(obs, action, np.asarray(rewards, np.float64), terminated, truncated)


def _buffer(state: Mapping[str, Any]) -> list[Any]:
    """Entries of a lookback buffer, those before the piece left out."""
    data = state["data"]
    if isinstance(data, Mapping):
        keys = list(data)
        entries: list[Any] = [
            dict(zip(keys, values, strict=True)) for values in zip(*data.values(), strict=True)
        ]
    else:
        entries = list(data)
    return entries[int(state["lookback"]) :]


def _stacked(values: list[Any]) -> Any:
    """Entries one after the other, as one array for each key."""
    if isinstance(values[0], Mapping):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    if any(value is None for value in values):
        raise ValueError("an array of Python objects")
    return np.stack([np.asarray(value) for value in values])


def _space_of(specs: Mapping[str, ArraySpec], *, low: float) -> Any:
    from gymnasium import spaces

    group = bare({key: gym_space(spec, low=low) for key, spec in specs.items()})
    return spaces.Dict(group) if isinstance(group, dict) else group


def _items(group: Mapping[str, np.ndarray], count: int) -> list[Any]:
    return [bare({key: value[i] for key, value in group.items()}) for i in range(count)]


def _spaces(path: Path, state: Mapping[str, Any]) -> tuple[Any, Any]:
    found = state.get("_observation_space"), state.get("_action_space")
    if not found[0] or not found[1]:
        raise CheckpointError(
            f"{path}: its episodes do not say their spaces; record them with RLlib's env runners"
        )
    try:
        return space_from_rllib(found[0]), space_from_rllib(found[1])
    except (KeyError, ValueError, TypeError, zlib.error) as error:
        raise CheckpointError(f"{path}: its spaces cannot be read ({first_line(error)})") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("episodes of RLlib", "pyarrow", "parquet") from error
    return pyarrow, parquet
