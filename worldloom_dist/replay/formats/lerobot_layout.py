"""The files of a LeRobot dataset v3.0 (https://huggingface.co/docs/lerobot/lerobot-dataset-v3), as
its ``meta`` folder describes them; nothing of LeRobot is needed, pyarrow is.

    meta/info.json                      version, fps, features, templates of the names of files
    meta/stats.json, meta/tasks.parquet
    meta/episodes/chunk-000/file-000.parquet     a line per episode: its length, its files
    data/chunk-000/file-000.parquet              a line per decision; several episodes
    videos/FEATURE/chunk-000/file-000.mp4        frames of several episodes

Knows no row: :mod:`lerobot` reads them, :mod:`lerobot_writer` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import CheckpointError, ConfigurationError, MissingDependencyError
from worldloom.core.json_text import read_object

__all__ = [
    "COUNTERS",
    "DATA",
    "EPISODES",
    "FINAL",
    "SCHEME",
    "VERSION",
    "Episode",
    "Feature",
    "Layout",
    "VideoPlace",
    "lerobot_files",
    "parquet_package",
    "read_layout",
    "split_name",
]

SCHEME = "lerobot:"
VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that count rows: every dataset has them, and no run stores them."""
FINAL = "final/"
"""Before the name of a feature: the column of ``meta/episodes`` that holds what an episode's last
action led to. It is this program's own; LeRobot passes it by.
"""
SEVERAL = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
VIDEO_KINDS = ("image", "video")
MAX_META_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of the dataset.

    Attributes:
        name: Of the column.
        dtype: As ``info.json`` says it: of numpy, or ``image``, ``video``, ``string``.
        shape: Of one entry.
        is_depth: True for depths in the place of colours.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_depth: bool = False

    @property
    def is_picture(self) -> bool:
        """True when its entries are files of images, or frames of a video."""
        return self.dtype in VIDEO_KINDS

    @property
    def is_number(self) -> bool:
        """True when its entries are plain numbers."""
        return bool(re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", self.dtype))


@dataclass(frozen=True, slots=True)
class VideoPlace:
    """Where the frames of an episode are: the file, and the time of the first one in it."""

    path: Path
    start_s: float


@dataclass(frozen=True, slots=True)
class Episode:
    """What ``meta/episodes`` says of one episode.

    Attributes:
        index: Its number.
        length: Decisions in it.
        data: The file with its rows.
        videos: Per feature that is wanted, where its frames are.
        final: Per feature, what its last action led to, where the dataset says so.
    """

    index: int
    length: int
    data: Path
    videos: Mapping[str, VideoPlace]
    final: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """A dataset whose ``meta/info.json`` was read and is in order.

    Attributes:
        folder: Of the dataset.
        fps: Rows per second.
        features: By name.
        data_path, video_path: Templates of the names of files.
    """

    folder: Path
    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str | None
    info: Mapping[str, Any] = field(repr=False)

    def episodes(self, videos: Collection[str] = ()) -> Iterator[Episode]:
        """Every episode, in the order of its files.

        Args:
            videos: Features whose videos are wanted; those of others need not be there.

        Raises:
            CheckpointError: If ``meta/episodes`` is missing or damaged, or names a file that is
                not there.
        """
        _, parquet = parquet_package()
        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise CheckpointError(
                f"{SCHEME}{self.folder}: has no meta/episodes/chunk-*/file-*.parquet; give the "
                "whole dataset"
            )
        for path in files:
            file = parquet.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            for batch in file.iter_batches(batch_size=256, columns=names):
                yield from (self._episode(path, line, videos) for line in batch.to_pylist())

    def _episode(self, path: Path, line: Mapping[str, Any], wanted: Collection[str]) -> Episode:
        try:
            videos = {
                name: VideoPlace(
                    self._file(
                        self.video_path or "",
                        video_key=name,
                        chunk_index=line[f"videos/{name}/chunk_index"],
                        file_index=line[f"videos/{name}/file_index"],
                    ),
                    float(line[f"videos/{name}/from_timestamp"]),
                )
                for name in wanted
            }
            data = self._file(
                self.data_path,
                chunk_index=line["data/chunk_index"],
                file_index=line["data/file_index"],
            )
            index, length = int(line["episode_index"]), int(line["length"])
        except KeyError as error:
            raise CheckpointError(
                f"{path}: has no column {error}; give the dataset as LeRobot wrote it"
            ) from error
        if index < 0 or length < 1:
            raise CheckpointError(
                f"{path}: says that episode {index} has {length} rows; mend the dataset"
            )
        final = {
            name.removeprefix(FINAL): value
            for name, value in line.items()
            if name.startswith(FINAL) and value is not None
        }
        return Episode(index, length, data, videos, final)

    def _file(self, template: str, **values: Any) -> Path:
        """A file of the dataset by its template.

        Raises:
            CheckpointError: If the template is none, or leads to no file below the folder.
        """

        def filled(found: re.Match[str]) -> str:
            """A number or a name in the place of its braces."""
            name, width = found[1], found[2]
            if name not in values:
                raise CheckpointError(
                    f"{SCHEME}{self.folder}: meta/info.json names files by {template!r}, and "
                    f"{name!r} is none of {sorted(values)}; mend it"
                )
            value = values[name]
            return str(value) if width is None else f"{int(value):0{int(width)}d}"

        name = Path(SEVERAL.sub(filled, template))
        path = self.folder / name
        # a link may lead elsewhere, as all files in the cache of Hugging Face do
        if name.is_absolute() or ".." in name.parts or not path.is_file():
            raise CheckpointError(
                f"{SCHEME}{self.folder}: lacks the file {path}; give the whole dataset"
            )
        return path


def split_name(text: str) -> tuple[Path, dict[str, str]]:
    """``FOLDER?key=value&key=value`` as the folder and the pairs.

    Raises:
        ConfigurationError: If what follows the question mark is no list of pairs.
    """
    folder, _, query = text.partition("?")
    pairs: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in pairs:
            raise ConfigurationError(
                f"{SCHEME}{text}: {part!r} is no KEY=VALUE that stands there once; write for "
                f"example {SCHEME}{folder}?obs=observation.state&reward=next.reward"
            )
        pairs[key] = value
    return Path(folder), pairs


def read_layout(folder: Path) -> Layout:
    """Read ``meta/info.json``.

    Raises:
        CheckpointError: If it is missing or damaged, or of another version.
    """
    name = f"{SCHEME}{folder}"
    path = folder / "meta" / "info.json"
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise ValueError(f"it has more than {MAX_META_BYTES} bytes")
        info = read_object(path)
        version = info["codebase_version"]
        if not isinstance(version, str) or not version.startswith("v3."):
            raise CheckpointError(
                f"{name}: is a dataset of version {version!r}, and {VERSION} is read; convert it "
                "with LeRobot's convert_dataset_v21_to_v30"
            )
        fps = float(info["fps"])
        if not fps > 0:
            raise ValueError(f"fps is {fps}")
        features = {key: _feature(key, value) for key, value in info["features"].items()}
        templates = (info.get("data_path", DATA), info.get("video_path"))
        if not isinstance(templates[0], str) or not isinstance(templates[1], str | None):
            raise ValueError(f"names of files are {templates}")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{name}: has no meta/info.json; name the folder of a LeRobot dataset {VERSION}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{name}: meta/info.json is damaged ({type(error).__name__}: {error})"
        ) from error
    return Layout(folder, fps, features, templates[0], templates[1], info)


def _feature(name: str, found: Mapping[str, Any]) -> Feature:
    dtype, shape = found["dtype"], tuple(found["shape"])
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"feature {name!r} has the dtype {dtype!r} and the shape {shape}")
    notes = {**(found.get("video_info") or {}), **(found.get("info") or {})}
    is_depth = any(notes.get(key) for key in ("is_depth_map", "video.is_depth_map"))
    return Feature(name, dtype, shape, is_depth)


def lerobot_files(text: str) -> list[Path]:
    """The files that hold a dataset's numbers.

    Raises:
        CheckpointError: If it is no dataset.
    """
    folder, _ = split_name(text)
    read_layout(folder)
    parts = (folder / name for name in ("data", "meta", "videos"))
    return sorted(path for part in parts for path in part.rglob("*") if not path.is_dir())


def parquet_package() -> tuple[Any, Any]:
    """The package pyarrow, and its Parquet.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("a LeRobot dataset", "pyarrow", "parquet") from error
    return pyarrow, parquet
