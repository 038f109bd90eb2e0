"""What a shard writes into its journal, byte by byte (chunks as fixed fields and payload, the rest
as JSON), and finds again.

Chunks that do not fit into memory are read back from the journal: it has them anyway, so nothing is
written twice.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.core.exceptions import CheckpointError
from worldloom.core.sequence import Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import EncodedColumn, split_rows
from worldloom_dist.replay.journal import segment_path

__all__ = [
    "CHUNK",
    "DUPLICATE",
    "LOST",
    "SpilledChunks",
    "StoredChunk",
    "pack_count",
    "shard_identity",
    "unpack_count",
]

FORMAT = 1

CHUNK = 2
DUPLICATE = 3
LOST = 4
"""Kinds of records beside the journal's own head: a stored chunk, rows that came twice, and a
head's content after a loss.
"""

FIELDS = struct.Struct("<10qd")
COUNT = struct.Struct("<q")
OPEN_FILES = 32
"""Segments that are held open to read spilled chunks."""


class StoredChunk(NamedTuple):
    """A chunk and where it stands: the rows and agent steps inserted before it, and the wall time
    of its insertion.
    """

    chunk: Chunk
    first_row: int
    agent_steps_before: int
    inserted_s: float

    def pack(self) -> list[bytes | memoryview]:
        """The record's parts; the payload is not copied."""
        c = self.chunk
        place = (self.first_row, self.agent_steps_before, self.inserted_s)
        return [
            FIELDS.pack(*c.stream, c.seq, *c.version, c.num_rows, c.num_agent_steps, *place),
            c.payload,
        ]

    @classmethod
    def unpack(cls, record: bytes) -> StoredChunk:
        """Inverse of :meth:`pack`."""
        fields = FIELDS.unpack_from(record)
        version = PolicyVersion(*fields[4:6])
        return cls(
            Chunk(
                StreamId(*fields[:3]),
                fields[3],
                version,
                fields[6],
                fields[7],
                record[FIELDS.size :],
            ),
            *fields[8:],
        )


def shard_identity(index: int | None, columns: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """What ``shard.json`` says: whose rows lie beside it, and of which layout."""
    return {
        "format": FORMAT,
        "index": index,
        "columns": {name: spec.to_dict() for name, spec in sorted(columns.items())},
    }


def pack_count(count: int) -> list[bytes]:
    """The parts of a record that holds one number."""
    return [COUNT.pack(count)]


def unpack_count(record: bytes) -> int:
    """Inverse of :func:`pack_count`."""
    count: int = COUNT.unpack(record)[0]
    return count


class _Segment:
    """An open segment; it can be read as long as anybody holds it, also when the journal has
    deleted it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size)."""
        return os.pread(self._file, size, offset)


class SpilledChunks:
    """Implements ``data.chunk_table.ColdStore`` over the segments of a journal.

    Args:
        directory: Where the segments lie.
        columns: What every row has.
        wanted: Columns that are asked for.
    """

    def __init__(
        self, directory: Path, columns: Mapping[str, ArraySpec], wanted: Collection[str]
    ) -> None:
        self._directory = directory
        self._columns = columns
        self._wanted = tuple(wanted)
        self._open: OrderedDict[int, _Segment] = OrderedDict()

    def open(self, place: tuple[int, int, int]) -> Callable[[], Mapping[str, EncodedColumn]]:
        """A function that reads a chunk; it works whatever happens to the journal before it is
        called.
        """
        segment, offset, size = place
        file = self._open.pop(segment, None) or _Segment(segment_path(self._directory, segment))
        self._open[segment] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return partial(self._read, file, offset, size)

    def _read(self, file: _Segment, offset: int, size: int) -> dict[str, EncodedColumn]:
        record = file.read(offset, size)
        if len(record) != size:
            raise CheckpointError(
                f"replay: {self._directory} lost {size - len(record)} bytes of a "
                "chunk while the run went on"
            )
        rows = split_rows(StoredChunk.unpack(record).chunk.payload, self._columns)
        return {name: rows[name].owned() for name in self._wanted}
