"""What a shard writes into its journal, byte by byte (chunks as fixed fields and payload, the rest
as JSON), and finds again. A record whose checksum is right may still hold what no shard has
written; reading it raises ``CheckpointError``, and nothing else.

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

from zlib_ng import zlib_ng as zlib

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.json_text import parse_json
from worldloom.core.sequence import Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import EncodedColumn, split_rows
from worldloom_dist.replay.journal import Record, segment_path

__all__ = [
    "CHUNK",
    "DUPLICATE",
    "LARGEST_VERSION",
    "LOST",
    "MOST_SEQ",
    "Repeated",
    "SpilledChunks",
    "StoredChunk",
    "check_name",
    "shard_identity",
    "unpack_head",
]

FORMAT = 1

CHUNK = 2
DUPLICATE = 3
LOST = 4
"""Kinds of records beside the journal's own head: a stored chunk, a chunk that came again, and a
head's content after a loss.
"""
LARGEST = 2**62
"""Counts of rows, and numbers in the names of streams and chunks, are below this."""
MOST_SEQ = LARGEST - 2
"""Number of a stream's last chunk: that of the next one, which heads say, is below LARGEST."""
LARGEST_VERSION = 2**31 - 1
"""Updates of versions are kept in 32 bits."""

FIELDS = struct.Struct("<10qd")
COUNT = struct.Struct("<q")
REPEATED = struct.Struct("<5qI")
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
        """Inverse of :meth:`pack`.

        Raises:
            CheckpointError: If no shard has written it.
        """
        if len(record) < FIELDS.size:
            raise CheckpointError(f"replay: a record of {len(record)} bytes is no chunk")
        fields = FIELDS.unpack_from(record)
        version = PolicyVersion(*fields[4:6])
        numbers = (fields[0], *fields[2:10])
        if not (all(0 <= number < LARGEST for number in numbers) and abs(fields[1]) < LARGEST):
            raise CheckpointError(f"replay: a chunk that says {fields} of itself is damaged")
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


def check_name(chunk: Chunk) -> None:
    """Whether a journal can say of a chunk whose it is, and what a restart reads there again.

    Raises:
        ShapeMismatchError: If not; stored all the same, it would let no restart come to its rows.
    """
    slot, incarnation, env = chunk.stream
    for name, number, most in (
        ("slot", slot, LARGEST - 1),
        ("incarnation", abs(incarnation), LARGEST - 1),
        ("env", env, LARGEST - 1),
        ("seq", chunk.seq, MOST_SEQ),
        ("version.incarnation", chunk.version.incarnation, LARGEST - 1),
        ("version.update", chunk.version.update, LARGEST_VERSION),
    ):
        if not 0 <= number <= most:
            field = f"{name} of chunk {chunk.stream}/{chunk.seq}"
            raise ShapeMismatchError(field, f"0 to {most}", number)


def shard_identity(index: int | None, columns: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """What ``shard.json`` says: whose rows lie beside it, and of which layout."""
    return {
        "format": FORMAT,
        "index": index,
        "columns": {name: spec.to_dict() for name, spec in sorted(columns.items())},
    }


class Repeated(NamedTuple):
    """A chunk that came again, and was not stored twice.

    Attributes:
        rows: How many it has.
        stream, seq: Its name; None and -1 in journals of version 0.1, which count rows only.
        checksum: Of its rows: that of the stored chunk of this name, or they are not the same.
    """

    rows: int
    stream: StreamId | None = None
    seq: int = -1
    checksum: int = 0

    @classmethod
    def of(cls, chunk: Chunk) -> Repeated:
        """What is to be known of a chunk."""
        return cls(chunk.num_rows, chunk.stream, chunk.seq, zlib.crc32(chunk.payload))

    def pack(self) -> list[bytes]:
        """The record's parts."""
        assert self.stream is not None
        return [REPEATED.pack(self.rows, *self.stream, self.seq, self.checksum)]

    @classmethod
    def unpack(cls, record: bytes) -> Repeated:
        """Inverse of :meth:`pack`.

        Raises:
            CheckpointError: If no shard has written it.
        """
        if len(record) == COUNT.size:
            found = cls(COUNT.unpack(record)[0])
        elif len(record) == REPEATED.size:
            rows, slot, incarnation, env, seq, checksum = REPEATED.unpack(record)
            found = cls(rows, StreamId(slot, incarnation, env), seq, checksum)
        else:
            raise CheckpointError(f"replay: a record of {len(record)} bytes is no repeated chunk")
        if not 0 <= found.rows < LARGEST:
            raise CheckpointError(f"replay: a repeated chunk of {found.rows} rows is damaged")
        return found


def unpack_head(record: Record) -> dict[str, Any]:
    """What a head, or a record of a loss, says; every number in it can be counted with.

    Raises:
        CheckpointError: If no shard has written it.
    """
    try:
        head = parse_json(record.payload)
        wrong = [
            name
            for name, is_right in HEAD_FIELDS.items()
            if not (is_right(head[name]) if name in head else name in LATER_FIELDS)
        ]
        counts = [head.get(name) for name in ("lost", "agent_steps", "first_row")]
        if not wrong and any(count is not None and count > head["next_row"] for count in counts):
            wrong = ["next_row"]
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"replay: the head of segment {record.segment} is damaged ({error})"
        ) from error
    if wrong:
        raise CheckpointError(
            f"replay: the head of segment {record.segment} is damaged: {wrong[0]} cannot be "
            f"{str(head.get(wrong[0]))[:80]}"
        )
    found: dict[str, Any] = head
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_position(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 5 and _is_stream(value[:3], value[3:])


def _is_stream(name: list[Any], counts: list[Any]) -> bool:
    slot, incarnation, env = name
    is_named = type(incarnation) is int and abs(incarnation) < LARGEST
    return is_named and all(map(_is_count, (slot, env, *counts)))


def _is_gap(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and _is_stream(value[:3], [])
        and _is_list_of(_is_range)(value[3])
    )


def _is_list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


HEAD_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("next_row", "agent_steps", "lost", "duplicate"), _is_count),
    **dict.fromkeys(("first_row", "online_queued"), _is_count),
    "holes": _is_list_of(_is_range),
    "streams": _is_list_of(_is_position),
    "gaps": _is_list_of(_is_gap),
}
"""What a head says, and what that may be."""
LATER_FIELDS = ("first_row", "online_queued", "holes")
"""Heads of version 0.1 lack them."""


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
