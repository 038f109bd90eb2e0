"""From the records of a journal back to the rows and counters of a shard, whatever the disk has
lost or altered meanwhile.

Segments are deleted from the oldest on, when all their rows were evicted. So reading begins at some
head, which says what was before it; the newest head (or record of a loss) says which of those rows
were still stored, so which are missing on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_runs import ChunkRun
from worldloom.data.stream_tails import StreamPosition
from worldloom_dist.replay.journal import Record, SegmentRecords
from worldloom_dist.replay.plain_chunks import PlainChunks
from worldloom_dist.replay.records import (
    CHUNK,
    DUPLICATE,
    LOST,
    Repeated,
    StoredChunk,
    unpack_head,
)
from worldloom_dist.replay.shard_rows import ShardCounters, ShardRows

RUN_ROWS = 2**18
"""Most rows that are stored together: working memory of some 50 bytes each."""
SHORTEST_RUN = 8
"""Fewer chunks are sooner stored one by one."""

__all__ = ["Recovery", "RecoveryProgress", "RecoveryReport", "missing_before"]


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
class RecoveryProgress:
    """How far the reading of a journal has come; written by the thread that reads, read by others.

    Attributes:
        rows: Found so far.
        read_bytes, total_bytes: Of the journal.
    """

    rows: int = 0
    read_bytes: int = 0
    total_bytes: int = 0

    def __str__(self) -> str:
        read, total = self.read_bytes / 1e6, self.total_bytes / 1e6
        return f"{self.rows:,} rows so far, {read:,.1f} of {total:,.1f} MB"


class Recovery:
    """Takes the records of a journal, one after the other, into the empty rows of a shard.

    Chunks that are as almost all are (``PlainChunks``), and follow each other, are stored together:
    a journal of vectors would take minutes otherwise. All others are taken one by one, and both
    leave the same rows and counters.

    Args:
        rows: Filled.
        oldest_segment: Of the journal.
        columns: What every row has.

    Attributes:
        chunks: Taken so far.
        repeated: Records of chunks that had been taken, and were passed over.
        is_news: True if the next restart needs a record of the loss (``LOST``) to come to the same
            counters.
    """

    def __init__(
        self, rows: ShardRows, oldest_segment: int, columns: Mapping[str, ArraySpec]
    ) -> None:
        self._rows = rows
        self._plain = PlainChunks(columns)
        self._oldest = oldest_segment
        self._newest: Mapping[str, Any] = {}  # what the last head or record of a loss said
        self._newest_segment = oldest_segment  # where it stands
        # the head of the oldest segment was damaged, and no other has come yet
        self._is_blind = False
        self.chunks = 0
        self.repeated = 0
        self.is_news = False

    def take_segment(self, records: SegmentRecords) -> None:
        """The records of the next segment."""
        buffer = self._rows.buffer
        most_rows = min(buffer.capacity_rows, RUN_ROWS)
        run = ChunkRun(records.data)
        begin = 0  # of the run
        for number, (kind, start, size) in enumerate(records.frames):
            chunk = None
            if kind == CHUNK and self._may_run(records.segment):
                chunk = self._plain.read(records.data, start, size)
            if chunk is not None and run.rows + chunk.layout.rows > most_rows:
                self._store(run, records, begin)
                run = ChunkRun(records.data)
                begin = number
            if chunk is not None and chunk.layout.rows <= most_rows:
                seq = run.next_seqs.get(chunk.stream)
                expected = (
                    buffer.next_seq(chunk.stream) if seq is None else seq,
                    buffer.next_row + run.rows,
                )
                if (chunk.seq, chunk.first_row) == expected:
                    run.add(chunk)
                    continue
            self._store(run, records, begin)
            run = ChunkRun(records.data)
            begin = number + 1
            self.take(records.record(number))
        self._store(run, records, begin)

    def _may_run(self, segment: int) -> bool:
        """Whether the chunks of a segment are ordinary now: its first record was taken."""
        rows = self._rows
        return segment in rows.segment_rows and not self._is_blind and rows.buffer.takes_runs

    def _store(self, run: ChunkRun, records: SegmentRecords, begin: int) -> None:
        """Store a run, which begins with that record of the segment."""
        if len(run) < SHORTEST_RUN:
            for number in range(begin, begin + len(run)):
                self.take(records.record(number))
            return
        self._rows.store_run(run)
        self.chunks += len(run)

    def take(self, record: Record) -> None:
        """The next record."""
        rows = self._rows
        # which does not say where it stands
        if record.segment not in rows.segment_rows and record.kind != DUPLICATE:
            self._enter_segment(record)
        if record.kind == LOST:
            self._take_loss(record)
        elif record.kind == DUPLICATE:
            rows.counters.duplicate += Repeated.unpack(record.payload).rows
        elif record.kind == CHUNK:
            self._take_chunk(record)

    def finish(self, current: int | None, *, is_rollback: bool) -> None:
        """All records were taken.

        Args:
            current: The segment that is open for writing. It and the first one may have no intact
                record, and count all the same when segments are deleted.
            is_rollback: The journal was cut at a snapshot, so its newest head is older than the
                deletion of its oldest segments.
        """
        rows = self._rows
        if self._oldest == 0:
            rows.segment_rows[0] = 0
        if current is not None:
            rows.segment_rows.setdefault(current, rows.buffer.next_row)
        missing = 0
        if self._newest_segment == current:  # segments may have been deleted after an older head
            missing = missing_before(min(rows.segment_rows.values(), default=0), self._newest)
        if missing and not is_rollback:
            rows.counters.lost += missing
            rows.counters.evicted -= missing
        self.is_news = self.is_news or missing > 0

    def _take_chunk(self, record: Record) -> None:
        stored = StoredChunk.unpack(record.payload)
        rows = self._rows
        stream = stored.chunk.stream
        seq = stored.chunk.seq
        if stored.first_row < rows.buffer.next_row or not rows.is_new(stored.chunk):
            self.repeated += 1  # a disk, or who copied it, has a part of the journal twice
            return
        if stored.first_row > rows.buffer.next_row:
            self._lose(stored.first_row, stored.agent_steps_before)
        if self._is_blind and seq and not rows.buffer.next_seq(stream):
            # what came before was stored, as far as anybody can tell
            rows.buffer.know_streams({stream: StreamPosition(seq, 0)})
        try:
            split = rows.split(stored.chunk)
        except ShapeMismatchError as error:
            raise CheckpointError(f"replay: a chunk in the journal is damaged ({error})") from error
        rows.store(
            stored.chunk,
            split,
            stored.inserted_s,
            (record.segment, record.offset, len(record.payload)),
        )
        self.chunks += 1

    def _take_loss(self, record: Record) -> None:
        counters = unpack_head(record)
        rows = self._rows
        rows.skip_to(counters["next_row"], counters["agent_steps"])
        self._compare(counters, record.segment)
        rows.counters.lost = counters["lost"]
        self.is_news = False
        rows.counters.evicted = rows.buffer.next_row - len(rows.buffer) - counters["lost"]

    def _enter_segment(self, record: Record) -> None:
        """Start from, or compare with, the head of a segment; if the head is damaged, its first
        intact record has to do.
        """
        rows = self._rows
        head: dict[str, Any] = {}
        if record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            next_row = stored.first_row
            agent_steps = stored.agent_steps_before
        else:
            head = unpack_head(record)
            next_row = head["next_row"]
            agent_steps = head["agent_steps"]
        if not rows.segment_rows and self._oldest > 0:
            self._start_at(head, next_row, agent_steps)
        elif next_row > rows.buffer.next_row:
            self._lose(next_row, agent_steps)
        if head:
            self._compare(head, record.segment)
        rows.segment_rows[record.segment] = next_row

    def _start_at(self, head: Mapping[str, Any], next_row: int, agent_steps: int) -> None:
        """Begin in an empty buffer; everything before was evicted or lost."""
        rows = self._rows
        lost = head.get("lost", 0)
        rows.buffer.restore(
            _positions(head.get("streams", ())),
            next_row=next_row,
            online_queued=head.get("online_queued", 0),
        )
        rows.gaps.load(head.get("gaps", ()))
        rows.counters = ShardCounters(
            agent_steps,
            lost,
            head.get("duplicate", rows.counters.duplicate),
            evicted=next_row - lost,
        )
        self._is_blind = not head

    def _compare(self, state: Mapping[str, Any], segment: int) -> None:
        """Learn from a head, or a record of a loss, what a damaged record before it would have
        said.
        """
        rows = self._rows
        rows.counters.duplicate = max(rows.counters.duplicate, state["duplicate"])
        if self._is_blind:
            rows.counters.lost += state["lost"]
            rows.counters.evicted -= state["lost"]
            rows.buffer.know_streams(_positions(state["streams"]))
            rows.gaps.load(state["gaps"])
            self._is_blind = False
        self._newest = state
        self._newest_segment = segment

    def _lose(self, next_row: int, agent_steps: int) -> None:
        """Count the rows up to ``next_row``, which the journal should hold and does not,
        as lost.
        """
        self._rows.counters.lost += next_row - self._rows.buffer.next_row
        self.is_news = True
        self._rows.skip_to(next_row, agent_steps)


def missing_before(first_found: int, newest: Mapping[str, Any]) -> int:
    """Rows before the oldest one on disk that were stored when the newest head was written, and had
    not been lost before.

    Args:
        first_found: Id of the oldest row on disk.
        newest: Content of the newest head, or of a later record of a loss; heads of version 0.1 do
            not tell.
    """
    first_row = int(newest.get("first_row", first_found))
    lost: int = sum(
        max(0, min(stop, first_found) - max(start, first_row))
        for start, stop in newest.get("holes", ())
    )
    return max(0, first_found - first_row - lost)


def _positions(streams: Iterable[list[int]]) -> dict[StreamId, StreamPosition]:
    return {StreamId(*entry[:3]): StreamPosition(*entry[3:]) for entry in streams}
