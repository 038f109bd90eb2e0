"""What a shard writes into its journal, byte by byte (chunks as fixed fields and payload, the rest
as JSON), and finds again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from worldloom.core.sequence import Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec

__all__ = [
    "CHUNK",
    "DUPLICATE",
    "LOST",
    "RecoveryReport",
    "ShardCounters",
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


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a shard found on its disk when it started.

    Attributes:
        chunks, rows: Intact chunks read, and the rows stored now.
        torn_bytes: Bytes of a record that was being written at the time of death; it was never
            acknowledged (unless damaged later).
        corrupt_bytes: Bytes that were altered on the disk.
        lost_rows: Acknowledged rows that are known to be lost, over the whole run.
        seconds: How long it took.
    """

    chunks: int = 0
    rows: int = 0
    torn_bytes: int = 0
    corrupt_bytes: int = 0
    lost_rows: int = 0
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """What was found, in a sentence; empty when the disk was."""
        if not (self.chunks or self.torn_bytes or self.corrupt_bytes or self.lost_rows):
            return ""
        parts = [
            f"{self.rows:,} rows in {self.chunks:,} chunks are back from the journal "
            f"after {self.seconds:.1f} s"
        ]
        if self.torn_bytes:
            parts.append(
                f"{self.torn_bytes:,} bytes of a record that was never acknowledged were left out"
            )
        if self.corrupt_bytes:
            parts.append(f"{self.corrupt_bytes:,} bytes were altered on the disk and left out")
        if self.lost_rows:
            parts.append(f"{self.lost_rows:,} acknowledged rows of the whole run are lost")
        return "; ".join(parts)


@dataclass(slots=True)
class ShardCounters:
    """What a shard counts and its buffer cannot know; restored from journal heads.

    Attributes:
        agent_steps: Decisions inserted.
        lost: Acknowledged rows that the disk does not have.
        duplicate: Rows that came again and were ignored.
        evicted: Rows that made room.
    """

    agent_steps: int = 0
    lost: int = 0
    duplicate: int = 0
    evicted: int = 0


class StoredChunk(NamedTuple):
    """A chunk and where it stands: the rows and agent steps inserted before it, and the wall time
    of its insertion.
    """

    chunk: Chunk
    first_row: int
    steps_before: int
    inserted_s: float

    def pack(self) -> list[bytes | memoryview]:
        """The record's parts; the payload is not copied."""
        c = self.chunk
        place = (self.first_row, self.steps_before, self.inserted_s)
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
