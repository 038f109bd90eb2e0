"""Episodes as a LeRobot dataset v3.0 (see :mod:`lerobot_layout`), which appears whole or not at
all.

A line per decision. Images are PNG inside the Parquet files, so nothing is lost (LeRobot calls them
``image``; videos would be lossy). ``timestamp`` is the number of the decision / fps: an env has no
clock, so fps is what the name says (``?fps=20``), else 1. Actions are those of a run, in [-1, 1].
What an episode's last action led to is in ``meta/episodes``, since a dataset of LeRobot has no row
for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import replacing_together, write_json
from worldloom.core.sequence import Rows, rows_to_gym
from worldloom.core.specs import ACTION, OBS, ArraySpec, EnvSpec
from worldloom_dist.replay.formats.episode_rows import check_whole
from worldloom_dist.replay.formats.lerobot import NOTE
from worldloom_dist.replay.formats.lerobot_columns import (
    DONE,
    REWARD,
    TERMINATED,
    TRUNCATED,
    feature_name,
)
from worldloom_dist.replay.formats.lerobot_layout import (
    COUNTERS,
    DATA,
    EPISODES,
    FINAL,
    SCHEME,
    VERSION,
    parquet_package,
    split_name,
)
from worldloom_dist.replay.formats.lerobot_pictures import encode_picture
from worldloom_dist.replay.formats.lerobot_stats import joined_stats, stats_of

__all__ = ["write_lerobot"]

FILE_BYTES = 100 * 10**6
FILES_IN_FOLDER = 1000


def write_lerobot(text: str, env: EnvSpec, episodes: Iterable[Rows]) -> list[str]:
    """Write whole episodes to ``FOLDER`` or ``FOLDER?fps=20``, one at a time in memory.

    Returns:
        What a person should know of the dataset.

    Raises:
        ConfigurationError: If the folder exists and is not empty, fps is no whole number, or
            LeRobot's columns cannot hold the spaces.
        MissingDependencyError: If pyarrow is not installed, or Pillow for images.
    """
    folder, query = split_name(text)
    fps = _fps(text, query)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{SCHEME}{folder} is there already; name a new folder")
    names = _feature_names(folder, env)
    with replacing_together(folder) as staging:
        _Writer(staging, env, names, fps).write(episodes)
    if "fps" in query:
        return []
    return ["fps is 1, so timestamps count decisions; ?fps=20 behind the folder says another rate"]


def _fps(text: str, query: Mapping[str, str]) -> int:
    asked = query.get("fps", "1")
    if set(query) - {"fps"} or not asked.isdecimal() or not 0 < int(asked) < 10**6:
        raise ConfigurationError(
            f"{SCHEME}{text}: a dataset is written with ?fps=N, a whole number of decisions per "
            f"second from 1; got {dict(query)}"
        )
    return int(asked)


def _feature_names(folder: Path, env: EnvSpec) -> dict[tuple[str, str], str]:
    """The column of every key of the env's spaces.

    Raises:
        ConfigurationError: If LeRobot's columns cannot hold one.
    """
    names = {
        (group, key): feature_name(group, key, is_image=spec.is_image)
        for group, specs in ((OBS, env.obs), (ACTION, env.action))
        for key, spec in specs.items()
    }
    for (group, key), name in names.items():
        spec = (env.obs if group == OBS else env.action)[key]
        if "/" in name or list(names.values()).count(name) > 1:
            raise ConfigurationError(
                f"{SCHEME}{folder}: LeRobot has no column for the {group} key {key!r}; export to a "
                "name that ends in .parquet"
            )
        if spec.is_image and spec.shape[2] not in (1, 3):
            raise ConfigurationError(
                f"{SCHEME}{folder}: the {group} key {key!r} is images of {spec.shape[2]} channels, "
                "and LeRobot has images of 1 or 3; export to a name that ends in .parquet"
            )
        if not spec.size:
            raise ConfigurationError(
                f"{SCHEME}{folder}: the {group} key {key!r} has no numbers; export to a name that "
                "ends in .parquet"
            )
    return names


class _Writer:
    """Writes one dataset to an empty folder."""

    def __init__(
        self, folder: Path, env: EnvSpec, names: Mapping[tuple[str, str], str], fps: int
    ) -> None:
        self._folder = folder
        self._env = env
        self._fps = fps
        self._obs = {names[OBS, key]: (key, spec) for key, spec in env.obs.items()}
        self._action = {names[ACTION, key]: (key, spec) for key, spec in env.action.items()}
        self._specs = {name: spec for name, (_, spec) in (self._obs | self._action).items()}
        self._lines: list[dict[str, Any]] = []
        self._rows = 0
        self._file = 0
        self._open: Any = None

    def write(self, episodes: Iterable[Rows]) -> None:
        """Write everything."""
        stats: list[dict[str, Any]] = []
        try:
            for rows in episodes:
                check_whole(rows, str(self._folder))
                gym = rows_to_gym(rows)
                if len(gym["reward"]):
                    stats.append(self._write_episode(gym))
        finally:
            if self._open is not None:
                self._open.close()
        self._write_meta(stats)

    def _write_episode(self, gym: Mapping[str, Any]) -> dict[str, Any]:
        arrow, parquet = parquet_package()
        steps = len(gym["reward"])
        number = len(self._lines)
        count = np.arange(steps)
        seen = {name: gym["obs"][key] for name, (key, _) in self._obs.items()}
        done = {name: gym["action"][key] for name, (key, _) in self._action.items()}
        numbers = {
            REWARD: gym["reward"],
            DONE: gym["terminated"] | gym["truncated"],
            TRUNCATED: gym["truncated"],
            TERMINATED: gym["terminated"],
            "timestamp": (count / self._fps).astype(np.float32),
            "frame_index": count,
            "episode_index": np.full(steps, number),
            "index": count + self._rows,
            "task_index": np.zeros(steps, np.int64),
        }
        before = {name: value[:-1] for name, value in seen.items()}
        columns = {
            **{name: _column(value, self._specs[name]) for name, value in (before | done).items()},
            **{name: arrow.array(value) for name, value in numbers.items()},
        }
        path = self._folder / DATA.format(**self._place())
        if self._open is not None and path.stat().st_size >= FILE_BYTES:
            self._open.close()
            self._open = None
            self._file += 1
            path = self._folder / DATA.format(**self._place())
        table = arrow.table(columns)
        if self._open is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            note = {NOTE: json.dumps(self._env.to_dict()).encode()}
            self._open = parquet.ParquetWriter(path, table.schema.with_metadata(note))
        self._open.write_table(table.replace_schema_metadata(self._open.schema.metadata))
        stats = stats_of(before | done | numbers)
        last = {name: value[-1] for name, value in seen.items()}
        self._lines.append(self._line(number, steps, last, stats))
        self._rows += steps
        return stats

    def _place(self) -> dict[str, int]:
        return {
            "chunk_index": self._file // FILES_IN_FOLDER,
            "file_index": self._file % FILES_IN_FOLDER,
        }

    def _line(
        self, number: int, steps: int, last: Mapping[str, np.ndarray], stats: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Of ``meta/episodes``."""
        place = self._place()
        return {
            "episode_index": number,
            "tasks": [self._env.name],
            "length": steps,
            "data/chunk_index": place["chunk_index"],
            "data/file_index": place["file_index"],
            "dataset_from_index": self._rows,
            "dataset_to_index": self._rows + steps,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **{
                FINAL + name: encode_picture(value)
                if self._specs[name].is_image
                else value.reshape(-1).tolist()
                for name, value in last.items()
            },
            **{
                f"stats/{name}/{kind}": value
                for name, found in stats.items()
                for kind, value in found.items()
            },
        }

    def _write_meta(self, stats: list[dict[str, Any]]) -> None:
        arrow, parquet = parquet_package()
        meta = self._folder / "meta"
        meta.mkdir(parents=True)
        total = len(self._lines)
        if total:
            path = self._folder / EPISODES.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True)
            parquet.write_table(arrow.Table.from_pylist(self._lines), path)
        tasks = arrow.table({"task_index": [0], "task": [self._env.name]})
        parquet.write_table(tasks.replace_schema_metadata(PANDAS), meta / "tasks.parquet")
        write_json(meta / "stats.json", joined_stats(stats))
        write_json(
            meta / "info.json",
            {
                "codebase_version": VERSION,
                "robot_type": self._env.name,
                "fps": self._fps,
                "total_episodes": total,
                "total_frames": self._rows,
                "total_tasks": 1,
                "chunks_size": FILES_IN_FOLDER,
                "data_files_size_in_mb": FILE_BYTES // 10**6,
                "video_files_size_in_mb": 200,
                "splits": {"train": f"0:{total}"},
                "data_path": DATA,
                "video_path": None,
                "features": self._features(),
            },
        )

    def _features(self) -> dict[str, Any]:
        def entry(dtype: str, shape: tuple[int, ...], names: list[str] | None) -> dict[str, Any]:
            return {"dtype": dtype, "shape": list(shape), "names": names}

        features = {
            name: entry("image", spec.shape, ["height", "width", "channels"])
            if spec.is_image
            else entry(spec.dtype, (spec.size,), None)
            for name, spec in self._specs.items()
        }
        features[REWARD] = entry("float32", (1,), None)
        features[DONE] = entry("bool", (1,), None)
        features[TRUNCATED] = entry("bool", (1,), None)
        features[TERMINATED] = entry("bool", (1,), None)
        for name in COUNTERS:
            features[name] = entry("float32" if name == "timestamp" else "int64", (1,), None)
        return features


PANDAS = {
    b"pandas": json.dumps(
        {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": name,
                    "field_name": name,
                    "pandas_type": kind,
                    "numpy_type": dtype,
                    "metadata": None,
                }
                for name, kind, dtype in (
                    ("task_index", "int64", "int64"),
                    ("task", "unicode", "object"),
                )
            ],
            "creator": {"library": "pyarrow"},
            "pandas_version": "2.0.0",
        }
    ).encode()
}
"""Says that ``task`` is the index of the table, by which LeRobot finds the text of a task."""


def _column(value: np.ndarray, spec: ArraySpec) -> Any:
    """A column as LeRobot has it: one number plainly, several as a list, an image as its file."""
    arrow, _ = parquet_package()
    if spec.is_image:
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        return arrow.array([{"bytes": encode_picture(one), "path": None} for one in value], kind)
    flat = arrow.array(np.ascontiguousarray(value).reshape(-1))
    return flat if spec.size == 1 else arrow.FixedSizeListArray.from_arrays(flat, spec.size)
