"""What a shard knows: its rows, where every row went, and which chunks it has seen. No lock, no disk: ``ReplayShard`` adds both.

The same object takes chunks from writers and, after a restart, the records of the journal, so both leave the same state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from worldloom.core.sequence import Chunk, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import PackedColumn, split_rows
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom.data.stream_tails import StreamPosition
from worldloom_dist.ports import RowBooks
from worldloom_dist.replay.gaps import GapTable
from worldloom_dist.replay.journal import HEAD, Record
from worldloom_dist.replay.records import CHUNK, DUPLICATE, LOST, ShardCounters, StoredChunk, unpack_count

__all__ = ["ShardRows"]

Place = tuple[int, int, int]
"""Segment, offset and size of a chunk's record in the journal."""


class ShardRows:
    """Rows, books, and the table of chunks seen.

    Args:
        make_buffer: Makes the empty buffer.
        columns: What every row has.

    Attributes:
        buffer: The rows.
        counters: What the buffer cannot know.
        segment_rows: Rows inserted before each segment of the journal.
    """

    def __init__(self, make_buffer: Callable[[], SequenceBuffer], columns: Mapping[str, ArraySpec]) -> None:
        self.buffer, self._columns = make_buffer(), columns
        self.counters, self._gaps = ShardCounters(), GapTable()
        self.segment_rows: dict[int, int] = {}

    def is_new(self, chunk: Chunk) -> bool:
        """True for a chunk that was never stored."""
        return self._gaps.is_new(chunk.stream, chunk.seq, self.buffer.next_seq(chunk.stream))

    def to_record(self, chunk: Chunk, inserted_s: float) -> list[bytes | memoryview]:
        """The journal's record of a new chunk."""
        return StoredChunk(chunk, self.buffer.next_row, self.counters.agent_steps, inserted_s).pack()

    def store(self, chunk: Chunk, rows: Mapping[str, PackedColumn], inserted_s: float, place: Place | None) -> None:
        """Take a new chunk; ``place`` is where the journal has it."""
        self._gaps.stored(chunk.stream, chunk.seq, self.buffer.next_seq(chunk.stream))
        version = chunk.version.update
        self.counters.evicted += self.buffer.append(
            chunk.stream, chunk.seq, rows, version=version, inserted_s=inserted_s, place=place
        )
        self.counters.agent_steps += chunk.num_agent_steps

    def books(self) -> RowBooks:
        """Where every row went; each number is counted, none is a remainder."""
        counters = self.counters
        return RowBooks(
            inserted=self.buffer.next_row,
            stored=len(self.buffer),
            evicted=counters.evicted,
            lost_acked=counters.lost,
            duplicate=counters.duplicate,
            agent_steps=counters.agent_steps,
            payload_bytes=self.buffer.nbytes,
        )

    def head(self) -> bytes:
        """Everything that reading the journal from here needs to know of the rows before."""
        head = {
            "next_row": self.buffer.next_row,
            "agent_steps": self.counters.agent_steps,
            "lost": self.counters.lost,
            "duplicate": self.counters.duplicate,
            "online_queued": self.buffer.online_queued,
            "streams": [[*stream, *position] for stream, position in self.buffer.streams().items()],
            "gaps": self._gaps.state(),
        }
        return json.dumps(head).encode()

    def oldest_needed(self) -> int:
        """The segment that holds the oldest stored row."""
        reaching = [number for number, row in self.segment_rows.items() if row <= self.buffer.first_row]
        return max(reaching, default=min(self.segment_rows))

    def take(self, record: Record, oldest_segment: int) -> bool:
        """Take a record of the journal after a restart; True for a chunk."""
        if record.segment not in self.segment_rows:
            self._enter_segment(record, oldest_segment)
        if record.kind == LOST:
            head = json.loads(record.payload)
            self._skip(head["next_row"], head["agent_steps"])
            self.counters.lost, self.counters.unrecorded = head["lost"], 0
            self.counters.evicted = self.buffer.next_row - len(self.buffer) - head["lost"]
        elif record.kind == DUPLICATE:
            self.counters.duplicate += unpack_count(record.payload)
        elif record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            if stored.first_row > self.buffer.next_row:
                self._lose(stored.first_row, stored.steps_before)
            place = (record.segment, record.offset, len(record.payload))
            self.store(stored.chunk, split_rows(stored.chunk.payload, self._columns), stored.inserted_s, place)
        return record.kind == CHUNK

    def know_damaged_segments(self, oldest_segment: int, current: int | None) -> None:
        """The first and the current segment may have no intact record, and count all the same when segments are deleted."""
        if oldest_segment == 0:
            self.segment_rows[0] = 0
        if current is not None:
            self.segment_rows.setdefault(current, self.buffer.next_row)

    def declare_lost(self, acknowledged: RowBooks) -> int:
        """Count rows that somebody saw acknowledged and that are not here as lost; returns how many are new."""
        before = self.books()
        if acknowledged.inserted <= before.inserted:
            return 0
        self._skip(acknowledged.inserted, max(self.counters.agent_steps, acknowledged.agent_steps))
        self.counters.evicted = max(acknowledged.evicted, self.counters.evicted)
        self.counters.lost = acknowledged.inserted - len(self.buffer) - self.counters.evicted
        return self.counters.lost - before.lost_acked

    def _enter_segment(self, record: Record, oldest_segment: int) -> None:
        """Start from, or compare with, the head of a segment; if the head is damaged, its first intact record has to do."""
        is_oldest, deleted = not self.segment_rows, oldest_segment > 0
        head: dict[str, Any] = json.loads(record.payload) if record.kind == HEAD else {}
        next_row, steps = (head["next_row"], head["agent_steps"]) if head else self._place_of(record)
        if is_oldest and deleted:
            self._start_at(head, next_row)
            self.counters.agent_steps = steps
        elif next_row > self.buffer.next_row:
            self._lose(next_row, steps)
        self.segment_rows[record.segment] = next_row

    def _place_of(self, record: Record) -> tuple[int, int]:
        """Rows and agent steps before a record."""
        if record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            return stored.first_row, stored.steps_before
        return self.buffer.next_row, self.counters.agent_steps

    def _start_at(self, head: Mapping[str, Any], next_row: int) -> None:
        """Begin in an empty buffer; everything before was evicted or lost."""
        streams = {StreamId(*entry[:3]): StreamPosition(*entry[3:]) for entry in head.get("streams", ())}
        self.buffer.restore(streams, next_row=next_row, online_queued=head.get("online_queued", 0))
        self._gaps.load(head.get("gaps", ()))
        lost = head.get("lost", 0)
        self.counters = ShardCounters(head.get("agent_steps", 0), lost, head.get("duplicate", 0), evicted=next_row - lost)

    def _lose(self, next_row: int, steps: int) -> None:
        """Count the rows up to ``next_row``, which the journal should hold and does not, as lost."""
        self.counters.lost += next_row - self.buffer.next_row
        self.counters.unrecorded += next_row - self.buffer.next_row
        self._skip(next_row, steps)

    def _skip(self, next_row: int, steps: int) -> None:
        self.counters.evicted += self.buffer.skip(next_row - self.buffer.next_row)
        self.counters.agent_steps = steps
