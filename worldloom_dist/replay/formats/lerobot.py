"""Episodes of a LeRobot dataset v3.0, read from its Parquet, MP4 and JSON files without LeRobot.

A line of a dataset holds what was seen, what was done then and what that led to (``next.reward``):
as in Gymnasium. The observation after an episode's last line is in no dataset of LeRobot, so the
last one is repeated, as from an ``.npz`` without it; what this program writes has it, in a column
of ``meta/episodes`` that LeRobot passes by.

An episode that ``next.done`` ends counts as terminated, unless ``next.truncated`` says otherwise;
one that simply ends in the files counts as truncated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.json_text import parse_json
from worldloom.core.sequence import Rows, rows_from_gym
from worldloom.core.specs import EnvSpec
from worldloom.training.npz import check_expansion
from worldloom_dist.replay.formats.episode_rows import EpisodeFile
from worldloom_dist.replay.formats.lerobot_columns import (
    CHOOSE,
    DONE,
    TRUNCATED,
    Chosen,
    action_space,
    choose_columns,
    obs_space,
    spelled_out,
)
from worldloom_dist.replay.formats.lerobot_layout import (
    COUNTERS,
    SCHEME,
    Episode,
    Feature,
    Layout,
    parquet_package,
    read_layout,
    split_name,
)
from worldloom_dist.replay.formats.lerobot_pictures import (
    VideoFrames,
    decode_picture,
    picture_shape,
)

__all__ = ["NOTE", "chosen_columns", "read_lerobot"]

NOTE = b"worldloom_env"
BATCH_ROWS = 64
UNIT = 1.0 + 1e-5
EPISODE, FRAME, TIME = "episode_index", "frame_index", "timestamp"

Arrays = dict[str, np.ndarray]
Columns = dict[str, Any]
EpisodeParts = Iterator[tuple[int, Iterator[tuple[int, Columns]]]]


@dataclass(frozen=True, slots=True)
class Conversion:
    """From arrays of the dataset to those of rows, both by the key of a space."""

    env: EnvSpec
    observe: Callable[[Arrays], Arrays]
    act: Callable[[Arrays], Arrays]


def read_lerobot(text: str) -> EpisodeFile:
    """Open a dataset: ``FOLDER`` or ``FOLDER?COLUMN=FEATURE&...``.

    Raises:
        CheckpointError: If it is missing, damaged, of another version, or lacks a column; also
            while episodes are read.
        ConfigurationError: If the query is none, or its spaces cannot be trained on.
        MissingDependencyError: If pyarrow is not installed, or what its pictures need.
    """
    folder, query = split_name(text)
    layout = read_layout(folder)
    written = _noted_env(layout)
    noted = None if query else written
    chosen = choose_columns(layout, query, noted, is_ours=written is not None)
    check_expansion(folder / "meta" / "info.json", _row_bytes(chosen))
    converted = _as_noted(noted) if noted else _as_seen(layout, chosen)
    unused = set(layout.features) - {one.name for one in chosen.features} - set(COUNTERS)
    unused -= {DONE} if chosen.tells_ends else set()
    notes = [f"columns that are not used: {', '.join(sorted(unused))}"] if unused else []
    if written is not None and chosen.bounds:
        raise ConfigurationError(
            f"{SCHEME}{folder}: its actions were written by this program, in [-1, 1] as a run has "
            "them; leave bounds out"
        )
    if "stats" in chosen.bounds.values():
        notes.append(
            "actions are scaled by meta/stats.json: 1 is the largest that the dataset has, and no "
            "bound of an env"
        )
    if any(feature.dtype == "video" for feature in chosen.obs.values()):
        notes.append("its videos are lossy: images are near what was seen, not equal to it")
    opened = EpisodeFile(
        converted.env, iter(()), notes, choose=CHOOSE, has_native_actions=written is None
    )
    opened.episodes = _episodes(layout, chosen, converted, opened)
    return opened


def chosen_columns(text: str) -> str:
    """Which columns a name chooses, and how actions are scaled, in one spelling; raises as
    :func:`read_lerobot`.
    """
    folder, query = split_name(text)
    layout = read_layout(folder)
    written = _noted_env(layout)
    chosen = choose_columns(layout, query, None if query else written, is_ours=written is not None)
    return spelled_out(layout, chosen)


def _noted_env(layout: Layout) -> EnvSpec | None:
    """What this program wrote of the env; None in what others wrote."""
    _, parquet = parquet_package()
    first = next(layout.episodes(), None)
    if first is None:
        return None
    note = (parquet.read_schema(first.data).metadata or {}).get(NOTE)
    return None if note is None else EnvSpec.from_dict(parse_json(note))


def _as_noted(env: EnvSpec) -> Conversion:
    def shaped(arrays: Arrays, group: str) -> Arrays:
        """Arrays in the shapes of their specs."""
        specs = env.obs if group == "obs" else env.action
        return {key: value.reshape(len(value), *specs[key].shape) for key, value in arrays.items()}

    return Conversion(
        env, lambda arrays: shaped(arrays, "obs"), lambda arrays: shaped(arrays, "action")
    )


def _as_seen(layout: Layout, chosen: Chosen) -> Conversion:
    from worldloom.envs.space_json import spaces_to_json
    from worldloom.envs.spaces import ActionMapper, ObsMapper

    observed = obs_space(layout, chosen.obs)
    whole = {f.name: f for f in chosen.action.values() if not f.dtype.startswith("float")}
    acted = action_space(layout, chosen, _ranges(layout, whole) if whole else {})
    observe, act = ObsMapper(observed), ActionMapper(acted)
    env = EnvSpec(
        name="none", obs=observe.specs, action=act.specs, spaces=spaces_to_json(observed, acted)
    )

    def native(arrays: Arrays, specs: Mapping[str, Any], group: str) -> Any:
        return arrays[group] if list(specs) == [group] else arrays

    def seen(arrays: Arrays) -> Arrays:
        """Observations as those of a live env."""
        rows = len(next(iter(arrays.values())))
        return observe(native(arrays, chosen.obs, "obs"), (rows,), check_finite=False)

    def done(arrays: Arrays) -> Arrays:
        """Actions in [-1, 1], and choices counted from 0."""
        rows = len(next(iter(arrays.values())))
        one_choice = {
            key: value.reshape(rows) if act.specs[key].shape == () else value
            for key, value in arrays.items()
        }
        found = act.inverse(native(one_choice, chosen.action, "action"), (rows,))
        for key, value in found.items():
            if value.dtype.kind == "f" and value.size and np.abs(value).max() > UNIT:
                raise CheckpointError(
                    f"{SCHEME}{layout.folder}: column {chosen.action[key].name!r} reaches "
                    f"{float(np.abs(arrays[key]).max()):g}, outside its bounds "
                    f"{chosen.bounds_of(key)}; give those of the env's action space, for "
                    "example ?bounds=-2:2, or ?bounds=stats"
                )
        return found

    return Conversion(env, seen, done)


def _ranges(
    layout: Layout, features: Mapping[str, Feature]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The least and the largest value of columns, over all files."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    _, parquet = parquet_package()
    for path in dict.fromkeys(episode.data for episode in layout.episodes()):
        for batch in _table(path, parquet, list(features)).iter_batches(columns=list(features)):
            for name, feature in features.items():
                values = _numbers(path, feature, batch.column(name))
                if values.dtype.kind not in "biu":
                    raise CheckpointError(
                        f"{path}: column {name!r} is {values.dtype}, and meta/info.json says "
                        f"{feature.dtype}; mend the dataset"
                    )
                ends = values.min(axis=0).astype(np.int64), values.max(axis=0).astype(np.int64)
                low, high = found.get(name, ends)
                found[name] = np.minimum(low, ends[0]), np.maximum(high, ends[1])
    for name in features:
        found.setdefault(name, (np.zeros(1, np.int64),) * 2)
    return found


def _episodes(
    layout: Layout, chosen: Chosen, converted: Conversion, opened: EpisodeFile
) -> Iterator[Rows]:
    videos = {
        feature.name: VideoFrames(layout.folder, feature, layout.fps)
        for feature in chosen.obs.values()
        if feature.dtype == "video"
    }
    ends = {"cut": 0, "done": 0}
    try:
        described = layout.episodes(list(videos))
        for data, episodes in itertools.groupby(described, key=lambda one: one.data):
            read = itertools.groupby(_read_file(data, chosen), key=lambda part: part[0])
            for episode in episodes:
                arrays = _next_episode(layout, data, chosen, episode, read)
                _check_clock(layout, episode, arrays)
                for name, video in videos.items():
                    arrays[name] = video.read(episode.videos[name], episode.length)
                yield _rows(layout, chosen, converted, opened, episode, arrays, ends)
            if next(read, None) is not None:
                raise CheckpointError(
                    f"{data}: holds an episode that meta/episodes does not name; mend the dataset"
                )
    finally:
        for video in videos.values():
            video.close()
    if ends["cut"]:
        opened.notes.append(
            f"{ends['cut']} episodes have no end in the dataset; they count as truncated"
        )
    if ends["done"] and chosen.truncated is None:
        opened.notes.append(
            f"{ends['done']} episodes end by {(chosen.done and chosen.done.name) or DONE!r} and "
            f"there is no {TRUNCATED!r}; they count as terminated"
        )


def _row_bytes(chosen: Chosen) -> int:
    """Of one row, pictures left out: they are looked at one by one."""
    return sum(8 * math.prod(one.shape) for one in chosen.features if not one.is_picture)


def _table(path: Path, parquet: Any, names: list[str]) -> Any:
    """A Parquet file that has these columns."""
    file = parquet.ParquetFile(path)
    if lost := sorted(set(names) - set(file.schema_arrow.names)):
        raise CheckpointError(
            f"{path}: lacks the columns {lost}, which meta/info.json names; it has "
            f"{sorted(file.schema_arrow.names)}"
        )
    return file


def _read_file(path: Path, chosen: Chosen) -> Iterator[tuple[int, Columns]]:
    """(number, columns) of a part of one episode after the other of a data file: numbers as arrays,
    pictures as they are in the file.
    """
    _, parquet = parquet_package()
    counters = [Feature(name, "int64", (1,)) for name in (EPISODE, FRAME, TIME)]
    features = {one.name: one for one in (*counters, *chosen.features) if one.dtype != "video"}
    file = _table(path, parquet, list(features))
    check_expansion(path, file.metadata.num_rows * _row_bytes(chosen))
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(features)):
        columns = {
            name: batch.column(name) if one.is_picture else _numbers(path, one, batch.column(name))
            for name, one in features.items()
        }
        numbers = columns[EPISODE].reshape(-1)
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                part = {name: value[start:stop] for name, value in columns.items()}
                yield int(numbers[start]), part


def _next_episode(
    layout: Layout, path: Path, chosen: Chosen, episode: Episode, read: EpisodeParts
) -> Arrays:
    """The rows of an episode, as many as ``meta/episodes`` says; no picture of more rows is
    decoded.
    """
    pictures = {one.name: one for one in chosen.features if one.dtype == "image"}
    shapes = [picture_shape(layout.folder, one) for one in pictures.values()]
    check_expansion(path, episode.length * sum(map(math.prod, shapes)))
    number, found = next(read, (None, ()))
    parts: list[Arrays] = []
    rows = 0
    for _, columns in found:
        rows += len(columns[EPISODE])
        if number == episode.index and rows <= episode.length:
            parts.append(
                {
                    name: _pictures(layout, pictures[name], value) if name in pictures else value
                    for name, value in columns.items()
                }
            )
    if number != episode.index or rows != episode.length:
        there = f"{rows} rows of episode {number}" if rows else "no more episodes"
        raise CheckpointError(
            f"{path}: meta/episodes says that {episode.length} rows of episode {episode.index} "
            f"follow, and there are {there}; give the dataset as LeRobot wrote it"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pictures(layout: Layout, feature: Feature, column: Any) -> np.ndarray:
    return np.stack([decode_picture(layout.folder, feature, item) for item in column.to_pylist()])


def _numbers(path: Path, feature: Feature, column: Any) -> np.ndarray:
    """A column of numbers as ``[n, size]``, in the dtype of the file."""
    arrow, _ = parquet_package()
    from pyarrow import compute

    size = math.prod(feature.shape)
    rows = len(column)
    if isinstance(column, arrow.ChunkedArray):
        column = column.combine_chunks()
    is_whole = True
    while True:
        if isinstance(column.type, arrow.BaseExtensionType):
            column = column.storage
        is_whole = is_whole and not column.null_count
        kinds = arrow.types
        if not (
            kinds.is_list(column.type)
            or kinds.is_large_list(column.type)
            or kinds.is_fixed_size_list(column.type)
        ):
            break
        lengths = compute.list_value_length(column)
        is_whole = is_whole and len(lengths.unique()) <= 1
        column = column.flatten()
    if not is_whole or len(column) != rows * size:
        raise CheckpointError(
            f"{path}: column {feature.name!r} has empty entries, or not {size} numbers in each "
            "row; mend the dataset"
        )
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise CheckpointError(
            f"{path}: column {feature.name!r} is {column.type}, and numbers are read; choose "
            "other columns with ?obs=COLUMN&action=COLUMN"
        )
    return values.reshape(rows, size)


def _check_clock(layout: Layout, episode: Episode, arrays: Arrays) -> None:
    """Rows are in order, and frames of videos belong to them by their number."""
    count = np.arange(episode.length)
    frames = arrays.pop(FRAME).reshape(-1)
    times = arrays.pop(TIME).reshape(-1)
    del arrays[EPISODE]
    late = np.abs(times * layout.fps - count).max() if episode.videos else 0.0
    if not np.array_equal(frames, count) or not late < 0.5:
        raise CheckpointError(
            f"{SCHEME}{layout.folder}: {FRAME!r} of episode {episode.index} does not count its "
            f"rows from 0, or {TIME!r} is not that number / {layout.fps:g} fps; mend the dataset"
        )


def _rows(
    layout: Layout,
    chosen: Chosen,
    converted: Conversion,
    opened: EpisodeFile,
    episode: Episode,
    arrays: Arrays,
    ends: dict[str, int],
) -> Rows:
    terminated, truncated = _ends(layout, chosen, episode, arrays)
    ends["cut"] += not (terminated[-1] or truncated[-1])
    ends["done"] += bool(terminated[-1])
    truncated[-1] |= not terminated[-1]
    last = _final(layout, chosen, episode)
    opened.repeated += last is None
    obs = {}
    for key, feature in chosen.obs.items():
        values = arrays[feature.name]
        final = values[-1:] if last is None else last[key].astype(values.dtype)
        shape = values.shape[1:] if feature.is_picture else feature.shape
        obs[key] = np.concatenate([values, final]).reshape(len(values) + 1, *shape)
    action = {
        key: arrays[feature.name].reshape(episode.length, *feature.shape)
        for key, feature in chosen.action.items()
    }
    reward = arrays[chosen.reward.name].reshape(-1)
    return rows_from_gym(
        converted.observe(obs), converted.act(action), reward, terminated, truncated
    )


def _ends(
    layout: Layout, chosen: Chosen, episode: Episode, arrays: Arrays
) -> tuple[np.ndarray, np.ndarray]:
    """Where an episode ended, and where by a limit, by its own columns; ``[n]`` each."""
    found = []
    for feature in (chosen.done, chosen.truncated):
        values = np.zeros(episode.length, bool)
        if feature is not None:
            raw = arrays[feature.name].reshape(-1)
            values = raw.astype(bool)
            if not np.array_equal(values, raw) or values[:-1].any():
                raise CheckpointError(
                    f"{SCHEME}{layout.folder}: column {feature.name!r} of episode {episode.index} "
                    "is not False up to the last row and False or True there; name another one "
                    "with ?terminated=COLUMN&truncated=COLUMN, or mend the dataset"
                )
        found.append(values)
    done, truncated = found
    return done if chosen.tells_ends else done & ~truncated, truncated


def _final(layout: Layout, chosen: Chosen, episode: Episode) -> Arrays | None:
    """``[1, ...]`` per key: what the last action led to, or None where the dataset does not say."""
    if not all(feature.name in episode.final for feature in chosen.obs.values()):
        return None
    last = {}
    for key, feature in chosen.obs.items():
        value = episode.final[feature.name]
        if feature.is_picture:
            last[key] = decode_picture(layout.folder, feature, value)[None]
        else:
            last[key] = np.asarray(value).reshape(1, math.prod(feature.shape))
    return last
