"""One shard of the replay: a sequence buffer whose acknowledged rows survive the process that holds them.

    writer --append--> [dedup] -> [journal] -> [buffer] --True/False--> writer        (True or False: both are acknowledgements)
    reader --sample--> [buffer, under the lock] -> [decode, without it] --> reader

Restart is construction on the same directory: the journal is read, the rows, books and the table of seen chunks are as they were.

Durability: ``none`` keeps rows in this process only. ``journal`` (the default of a run) survives the death of the process in any
way, but not of the machine. ``fsync`` survives a power loss too. Where something is lost all the same, books say how much.

A mark is a cut for checkpoints: a few numbers and no copy of rows. The segments that the newest marks need are kept, so that
``rollback`` can drop everything after one of them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import Chunk, SequenceBatch, StreamId, agent_steps
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import PackedColumn, split_rows
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom.data.stream_tails import StreamPosition
from worldloom_dist.ports import RowBooks, SampledWindows, SampleRequest, WriteBack
from worldloom_dist.replay.gaps import GapTable
from worldloom_dist.replay.journal import DEFAULT_SEGMENT_BYTES, HEAD, Journal, JournalPosition, Record
from worldloom_dist.replay.marks import MarkFiles, ShardMark
from worldloom_dist.replay.records import (
    CHUNK,
    DUPLICATE,
    LOST,
    RecoveryReport,
    ShardCounters,
    StoredChunk,
    pack_count,
    unpack_count,
)

__all__ = ["Durability", "ReplayShard"]

logger = logging.getLogger(__name__)

Durability = Literal["none", "journal", "fsync"]
FORMAT = 1


class ReplayShard:
    """Stores chunks exactly once and samples windows. Safe for concurrent callers.

    Args:
        index: Number of this shard in the run.
        columns: What every row has.
        sampling: The windows to sample.
        capacity_steps: Rows kept.
        capacity_bytes: Optional further bound, see ``SequenceBuffer``.
        directory: Where the journal lies; may be None only with durability ``none``.
        durability: What an acknowledgement promises, see the module.
        segment_bytes: Size of a journal segment, the unit in which disk space is freed.
        packed: Columns kept compressed in memory, by default the images.
        kept_marks: How many of the newest marks can be rolled back to.

    Raises:
        CheckpointError: If the directory belongs to another shard or to rows of another layout.
        StateError: If another process holds the directory.
        ConfigurationError: If a journal has no directory, or the capacity cannot hold a window.
    """

    def __init__(
        self,
        index: int,
        columns: Mapping[str, ArraySpec],
        sampling: SamplingSpec,
        *,
        capacity_steps: int,
        capacity_bytes: int | None = None,
        directory: Path | None = None,
        durability: Durability = "journal",
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        packed: tuple[str, ...] | None = None,
        kept_marks: int = 2,
    ) -> None:
        self.index, self.columns, self.sampling = index, dict(columns), sampling
        self._mutable = _extras(columns)
        self._make_buffer = partial(
            SequenceBuffer,
            columns,
            sampling,
            capacity_rows=capacity_steps,
            capacity_bytes=capacity_bytes,
            packed=packed,
            mutable=self._mutable,
        )
        self._lock, self._mark_lock = threading.Lock(), threading.Lock()
        self._pinned: list[int] = []
        self._segment_rows: dict[int, int] = {}
        self._reset()
        self._journal: Journal | None = None
        self.recovered = RecoveryReport()
        if durability == "none":
            return
        if directory is None:
            raise ConfigurationError(f"replay shard {index}: durability {durability!r} needs a directory; name one or say none")
        self._journal = Journal(directory, fsync=durability == "fsync", segment_bytes=segment_bytes)
        try:
            self._files = MarkFiles(directory, kept_marks)
            self._files.claim({"format": FORMAT, "index": index, "columns": {n: s.to_dict() for n, s in sorted(columns.items())}})
            self._recover(self._journal)
            if self._files.marks:
                self._restore_mutable(self._files.marks[-1])
        except BaseException:
            self._journal.close()
            raise

    def append(self, chunk: Chunk) -> bool:
        """Acknowledge a chunk: when this returns, its rows are stored as durably as promised.

        Returns:
            False if this chunk was stored before; it is ignored, and its rows count as duplicate.

        Raises:
            CheckpointError: If the payload is damaged.
            ShapeMismatchError: If the rows have another layout or other counts than the chunk says.
            StateError: If the journal cannot be written; nothing has changed then.
        """
        rows = self._check(chunk)
        with self._lock:
            is_new = self._gaps.is_new(chunk.stream, chunk.seq, self._buffer.next_seq(chunk.stream))
            inserted_s = time.time()
            if self._journal is not None:
                self._write(self._journal, chunk, inserted_s, is_new=is_new)
            if is_new:
                self._store(chunk, rows, inserted_s)
            else:
                self._counters.duplicate += chunk.num_rows
        if self._journal is not None:
            self._journal.sync()
        return is_new

    def sample(self, request: SampleRequest) -> SampledWindows:
        """Draw windows; equal requests on equal content give equal windows.

        Raises:
            BufferError: If no window is complete.
        """
        rng = np.random.default_rng(list(request.seed))
        with self._lock:
            pending = self._buffer.draw(request.windows, rng)
        windows = pending.finish()
        shard = np.full(request.windows, self.index, np.int64)
        return SampledWindows(windows.columns, windows.row_ids, shard, windows.versions, windows.inserted_s)

    def write_back(self, row_ids: npt.NDArray[np.int64], refreshed: Mapping[str, np.ndarray]) -> WriteBack:
        """Overwrite extras of rows ``[n, T]`` with columns ``[n, T, ...]``; rows that were evicted meanwhile are rejected."""
        with self._lock:
            return WriteBack(*self._buffer.write_back(row_ids, refreshed))

    def books(self) -> RowBooks:
        """Where every row went."""
        with self._lock:
            return self._books()

    def live_windows(self) -> int:
        """Windows that can be drawn now: this shard's weight when samples are split over shards."""
        return self._buffer.num_windows

    def declare_lost(self, acknowledged: RowBooks) -> int:
        """Admit the loss of rows that the rest of the system saw acknowledged by this shard, and that its disk does not have.

        Args:
            acknowledged: The last books that anybody got from this shard.

        Returns:
            Rows newly counted as lost; row ids go on after those that were given out.
        """
        with self._lock:
            mine = self._books()
            gone = acknowledged.inserted - mine.inserted
            if gone <= 0:
                return 0
            evicted = max(acknowledged.evicted, mine.evicted)
            self._skip(acknowledged.inserted, max(self._counters.agent_steps, acknowledged.agent_steps))
            self._counters.lost = acknowledged.inserted - len(self._buffer) - evicted
            if self._journal is not None:
                self._record_loss(self._journal)
            logger.warning("replay shard %d: %d acknowledged rows are lost", self.index, self._counters.lost - mine.lost_acked)
            return self._counters.lost - mine.lost_acked

    def mark(self) -> ShardMark:
        """Cut here: a checkpoint that keeps the mark can come back to exactly these rows with :meth:`rollback`.

        Inserts wait only while mutable columns, if there are any, are copied in memory; writing them to disk blocks nobody.
        """
        with self._mark_lock:
            with self._lock:
                next_row, served = self._buffer.next_row, self._buffer.online_served
                if self._journal is None:
                    return ShardMark(-1, 0, -1, next_row, served)
                if self._journal.needs_rotation:
                    self._rotate(self._journal)
                place, oldest = self._journal.position, self._oldest_needed()
                self._pinned = [oldest]
                copied = self._buffer.export_mutable()
            mark = ShardMark(*place, oldest, next_row, served, self._files.save_mutable(*copied) if self._mutable else "")
            with self._lock:
                self._files.set_marks([*self._files.marks, mark])
                self._pinned = []
            self._journal.sync()
            return mark

    def rollback(self, mark: ShardMark) -> None:
        """Return to a mark, forgetting everything since.

        Raises:
            CheckpointError: If the journal no longer holds what the mark needs.
        """
        with self._lock:
            if self._journal is None:
                if self._buffer.next_row != mark.next_row:
                    raise CheckpointError(
                        f"replay shard {self.index} holds {self._buffer.next_row} rows instead of the {mark.next_row} of the mark: "
                        "with durability none nothing can be rolled back; use journal"
                    )
                return
            if self._journal.segments[0] > mark.oldest_segment:
                raise CheckpointError(
                    f"replay shard {self.index}: the journal of {mark} was deleted; only the newest marks are kept"
                )
            self._journal.truncate(JournalPosition(mark.segment, mark.offset))
            self._reset()
            self._recover(self._journal, online_served=mark.online_served)
            self._restore_mutable(mark)
            if self._buffer.next_row != mark.next_row:
                raise CheckpointError(f"replay shard {self.index}: {self._buffer.next_row} rows found instead of {mark.next_row}")
            self._files.set_marks([kept for kept in self._files.marks if kept.next_row < mark.next_row] + [mark])

    def close(self) -> None:
        """Let go of the directory; rows stay in memory."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()

    def _check(self, chunk: Chunk) -> dict[str, PackedColumn]:
        """Take the payload apart and compare it with what the chunk says of itself."""
        rows = split_rows(chunk.payload, self.columns)
        first = rows["is_first"].unpack()
        counts = (len(first), agent_steps(first))
        if counts != (chunk.num_rows, chunk.num_agent_steps) or not 0 < chunk.num_rows <= self._buffer.capacity_rows:
            raise ShapeMismatchError(
                f"rows and agent steps of chunk {chunk.stream}/{chunk.seq} (at most {self._buffer.capacity_rows} rows)",
                (chunk.num_rows, chunk.num_agent_steps),
                counts,
            )
        return rows

    def _write(self, journal: Journal, chunk: Chunk, inserted_s: float, *, is_new: bool) -> None:
        if is_new:
            stored = StoredChunk(chunk, self._buffer.next_row, self._counters.agent_steps, inserted_s)
            self._append_record(journal, CHUNK, stored.pack())
        else:
            self._append_record(journal, DUPLICATE, pack_count(chunk.num_rows))

    def _append_record(self, journal: Journal, kind: int, parts: list[bytes]) -> None:
        if journal.needs_rotation:
            self._rotate(journal)
        journal.append(kind, parts)

    def _rotate(self, journal: Journal) -> None:
        """Begin a segment, and delete those whose rows were all evicted and that no mark needs."""
        journal.rotate(json.dumps(self._head()).encode())
        self._segment_rows[journal.position.segment] = self._buffer.next_row
        keep = min([self._oldest_needed(), *self._pinned, *(mark.oldest_segment for mark in self._files.marks)])
        journal.drop_before(keep)
        self._segment_rows = {number: row for number, row in self._segment_rows.items() if number >= keep}

    def _oldest_needed(self) -> int:
        """The segment that holds the oldest stored row."""
        reaching = [number for number, row in self._segment_rows.items() if row <= self._buffer.first_row]
        return max(reaching, default=min(self._segment_rows))

    def _store(self, chunk: Chunk, rows: Mapping[str, PackedColumn], inserted_s: float) -> None:
        self._gaps.stored(chunk.stream, chunk.seq, self._buffer.next_seq(chunk.stream))
        self._buffer.append(chunk.stream, chunk.seq, rows, version=chunk.version.update, inserted_s=inserted_s)
        self._counters.agent_steps += chunk.num_agent_steps

    def _books(self) -> RowBooks:
        inserted, stored, lost = self._buffer.next_row, len(self._buffer), self._counters.lost
        return RowBooks(
            inserted=inserted,
            stored=stored,
            evicted=inserted - stored - lost,
            lost_acked=lost,
            duplicate=self._counters.duplicate,
            agent_steps=self._counters.agent_steps,
            payload_bytes=self._buffer.nbytes,
        )

    def _head(self) -> dict[str, Any]:
        """Everything that reading from here needs to know of the rows before."""
        return {
            "next_row": self._buffer.next_row,
            "agent_steps": self._counters.agent_steps,
            "lost": self._counters.lost,
            "duplicate": self._counters.duplicate,
            "online_queued": self._buffer.online_queued,
            "streams": [[*stream, *position] for stream, position in self._buffer.streams().items()],
            "gaps": self._gaps.state(),
        }

    def _reset(self) -> None:
        self._buffer = self._make_buffer()
        self._counters = ShardCounters()
        self._gaps = GapTable()
        self._segment_rows = {}

    def _recover(self, journal: Journal, online_served: int | None = None) -> None:
        """Read the journal from its oldest segment into the empty buffer; windows found there count as seen unless told."""
        started, chunks, oldest_segment = time.monotonic(), 0, min(journal.segments, default=0)
        for record in journal.read():
            if record.segment not in self._segment_rows:
                self._enter_segment(record, oldest_segment)
            if record.kind == LOST:
                head = json.loads(record.payload)
                self._skip(head["next_row"], head["agent_steps"])
                self._counters.lost, self._counters.unrecorded = head["lost"], 0
            elif record.kind == DUPLICATE:
                self._counters.duplicate += unpack_count(record.payload)
            elif record.kind == CHUNK:
                self._replay_chunk(StoredChunk.unpack(record.payload))
                chunks += 1
        self._buffer.mark_served(self._buffer.online_queued if online_served is None else online_served)
        self._know_damaged_segments(journal, oldest_segment)
        if self._counters.unrecorded:
            self._record_loss(journal)
        damage, rows = journal.damage, len(self._buffer)
        seconds = time.monotonic() - started
        self.recovered = RecoveryReport(
            chunks, rows, damage.torn_bytes, damage.corrupt_bytes, self._counters.lost, round(seconds, 3)
        )
        logger.info("replay shard %d: %s", self.index, self.recovered)

    def _enter_segment(self, record: Record, oldest_segment: int) -> None:
        """Start from, or compare with, the head of a segment; if the head is damaged, its first intact record has to do."""
        is_oldest, deleted = not self._segment_rows, oldest_segment > 0
        head: dict[str, Any] = json.loads(record.payload) if record.kind == HEAD else {}
        next_row, steps = (head["next_row"], head["agent_steps"]) if head else self._place_of(record)
        if is_oldest and deleted:
            self._start_at(head, next_row)
            self._counters.agent_steps = steps
        elif next_row > self._buffer.next_row:
            self._lose(next_row, steps)
        self._segment_rows[record.segment] = next_row

    def _know_damaged_segments(self, journal: Journal, oldest_segment: int) -> None:
        """The first and the current segment may have no intact record, and count all the same when segments are deleted."""
        if oldest_segment == 0:
            self._segment_rows[0] = 0
        if journal.segments:
            self._segment_rows.setdefault(journal.position.segment, self._buffer.next_row)

    def _place_of(self, record: Record) -> tuple[int, int]:
        """Rows and agent steps before a record."""
        if record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            return stored.first_row, stored.steps_before
        return self._buffer.next_row, self._counters.agent_steps

    def _start_at(self, head: Mapping[str, Any], next_row: int) -> None:
        """Begin in an empty buffer; everything before was evicted."""
        streams = {StreamId(*entry[:3]): StreamPosition(*entry[3:]) for entry in head.get("streams", ())}
        self._buffer.restore(streams, next_row=next_row, online_queued=head.get("online_queued", 0))
        self._gaps.load(head.get("gaps", ()))
        self._counters = ShardCounters(head.get("agent_steps", 0), head.get("lost", 0), head.get("duplicate", 0))

    def _replay_chunk(self, stored: StoredChunk) -> None:
        if stored.first_row > self._buffer.next_row:
            self._lose(stored.first_row, stored.steps_before)
        self._store(stored.chunk, split_rows(stored.chunk.payload, self.columns), stored.inserted_s)

    def _lose(self, next_row: int, steps: int) -> None:
        """Count the rows up to ``next_row``, which the journal should hold and does not, as lost."""
        self._counters.lost += next_row - self._buffer.next_row
        self._counters.unrecorded += next_row - self._buffer.next_row
        self._skip(next_row, steps)

    def _record_loss(self, journal: Journal) -> None:
        """Write down what is lost, for the day on which the segments that show it are deleted."""
        self._append_record(journal, LOST, [json.dumps(self._head()).encode()])
        self._counters.unrecorded = 0

    def _skip(self, next_row: int, steps: int) -> None:
        self._buffer.skip(next_row - self._buffer.next_row)
        self._counters.agent_steps = steps

    def _restore_mutable(self, mark: ShardMark) -> None:
        if mark.mutable_file:
            specs = {column: self.columns[column] for column in self._mutable}
            self._buffer.write_back(*self._files.load_mutable(mark.mutable_file, specs))


def _extras(columns: Mapping[str, ArraySpec]) -> frozenset[str]:
    """The agent's own columns: they may be written back."""
    return frozenset(SequenceBatch.from_columns(columns).extras)
