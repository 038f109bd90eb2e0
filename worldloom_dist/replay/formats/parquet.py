"""Episodes as Parquet: one line per row with every column as stored, the number of its episode, and
the spaces in the metadata.

Images and vectors are lists of fixed size, so that any reader of Parquet finds plain numbers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import CheckpointError, MissingDependencyError, ShapeMismatchError
from worldloom.core.files import replacing
from worldloom.core.json_text import parse_json
from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training.npz import check_expansion
from worldloom_dist.replay.formats.episode_rows import EpisodeFile, check_whole

__all__ = ["read_parquet", "write_parquet"]

NOTE = b"worldloom_env"
EPISODE = "episode"
BATCH_ROWS = 256


def read_parquet(path: Path) -> EpisodeFile:
    """Open a file of :func:`write_parquet`.

    Raises:
        CheckpointError: If it is missing, damaged or foreign; also while episodes are read.
        MissingDependencyError: If pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise CheckpointError(
            f"{path}: is not a readable Parquet file ({first_line(error)})"
        ) from error
    note = (file.schema_arrow.metadata or {}).get(NOTE)
    if note is None:
        raise CheckpointError(
            f"{path}: has no note of its spaces, so it was not written by this "
            f"program; it has {file.schema_arrow.names}"
        )
    try:
        env = EnvSpec.from_dict(parse_json(note))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its note of the spaces is damaged ({first_line(error)})"
        ) from error
    check_expansion(path, file.metadata.num_rows * sum(c.nbytes for c in env.columns().values()))
    needed = {EPISODE, *env.columns()}
    present = set(file.schema_arrow.names)
    if lost := sorted(needed - present):
        raise CheckpointError(f"{path}: lacks the columns {lost}; it has {sorted(present)}")
    unused = sorted(present - needed)
    return EpisodeFile(
        env,
        _episodes(path, file, env),
        [f"columns that are not used: {', '.join(unused)}"] if unused else [],
    )


def write_parquet(path: Path, env: EnvSpec, episodes: Iterable[Rows]) -> None:
    """Write whole episodes, one at a time in memory.

    Raises:
        MissingDependencyError: If pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    columns = env.columns()
    fields = [
        arrow.field(EPISODE, arrow.int64()),
        *(arrow.field(name, _type(spec)) for name, spec in columns.items()),
    ]
    schema = arrow.schema(fields, metadata={NOTE: json.dumps(env.to_dict()).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for number, rows in enumerate(episodes):
            check_whole(rows, str(path))
            count = len(rows["is_first"])
            arrays = [
                arrow.array(np.full(count, number)),
                *(_array(rows[name], spec) for name, spec in columns.items()),
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _episodes(path: Path, file: Any, env: EnvSpec) -> Iterator[Rows]:
    arrow, _ = _pyarrow()
    columns = env.columns()
    number = None
    open_parts: list[Rows] = []
    try:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            numbers = batch.column(EPISODE).to_numpy()
            if numbers.dtype.kind not in "iu":
                raise ValueError(f"{EPISODE!r} must be whole numbers, got {numbers.dtype}")
            rows = {
                name: _numpy(path, name, batch.column(name), spec) for name, spec in columns.items()
            }
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, stop in itertools.pairwise(cuts):
                if open_parts and numbers[start] != number:
                    yield _join(path, open_parts)
                    open_parts = []
                number = numbers[start]
                open_parts.append({name: value[start:stop] for name, value in rows.items()})
    except (OSError, KeyError, ValueError, arrow.ArrowException) as error:
        raise CheckpointError(f"{path}: damaged in the middle ({first_line(error)})") from error
    if open_parts:
        yield _join(path, open_parts)


def _join(path: Path, parts: list[Rows]) -> Rows:
    """The rows of an episode; other programs may have written something else there."""
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    try:
        check_whole(rows, str(path))
    except ShapeMismatchError as error:
        raise CheckpointError(
            f"{error}; give each episode a number of its own in column {EPISODE!r} "
            "wherever one begins"
        ) from error
    return rows


def _type(spec: ArraySpec) -> Any:
    arrow, _ = _pyarrow()
    item = arrow.from_numpy_dtype(np.dtype(spec.dtype))
    return arrow.list_(item, spec.size) if spec.shape else item


def _array(value: np.ndarray, spec: ArraySpec) -> Any:
    arrow, _ = _pyarrow()
    flat = arrow.array(np.ascontiguousarray(value).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, spec.size) if spec.shape else flat


def _numpy(path: Path, name: str, column: Any, spec: ArraySpec) -> np.ndarray:
    """A column as the file has it; ``episode_files.fit_rows`` makes it fit."""
    flat = column.flatten() if spec.shape else column
    if column.null_count or flat.null_count or len(flat) != len(column) * spec.size:
        raise CheckpointError(
            f"{path}: column {name!r} has empty entries, or not {spec.size} numbers "
            "in each row; mend the file"
        )
    values: np.ndarray = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), *spec.shape)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("a Parquet file", "pyarrow", "parquet") from error
    return pyarrow, parquet
