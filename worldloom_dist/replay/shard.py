"""One shard of the replay: a sequence buffer whose acknowledged rows survive the process that holds
them.

    writer --append--> [dedup] -> [journal] -> [buffer] --True/False--> writer (both acknowledge)
    reader --sample--> [buffer, under the lock] -> [decode, here or at the reader] --> reader

Restart is construction on the same directory: the journal is read, the rows, counters and the table
of seen chunks are as they were.

Durability: ``none`` keeps rows in this process only. ``journal`` (the default of a run) survives
the death of the process in any way, but not of the machine. ``fsync`` survives a power loss too.
Where something is lost all the same, counters say how much.

A snapshot is a cut for checkpoints: a few numbers and no copy of rows. The segments that the newest
snapshots need are kept, so that ``rollback`` can drop everything after one of them.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from worldloom.core.damage import reading
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    ShapeMismatchError,
    StateError,
)
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import Chunk, SequenceBatch, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.selectors import Selector, Uniform
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.ports import RowCounters, SampleRequest, WriteBack
from worldloom_dist.replay.fences import Fences
from worldloom_dist.replay.journal import DEFAULT_SEGMENT_BYTES, Journal, JournalPosition
from worldloom_dist.replay.records import (
    CHUNK,
    DUPLICATE,
    LOST,
    Repeated,
    SpilledChunks,
    check_name,
    shard_identity,
)
from worldloom_dist.replay.recovery import Recovery, RecoveryProgress, RecoveryReport
from worldloom_dist.replay.shard_rows import ShardRows
from worldloom_dist.replay.snapshots import ShardSnapshot, SnapshotStore

__all__ = ["Durability", "ReplayShard"]

logger = logging.getLogger(__name__)

Durability = Literal["none", "journal", "fsync"]


class ReplayShard:
    """Stores chunks exactly once and samples windows. Safe for concurrent callers.

    Args:
        index: Number of this shard in the run.
        columns: What every row has.
        sampling: The windows to sample.
        capacity_rows: Rows kept.
        capacity_bytes: Optional further bound, see ``SequenceBuffer``.
        directory: Where the journal lies; may be None only with durability ``none``.
        durability: What an acknowledgement promises, see the module.
        segment_bytes: Size of a journal segment, the unit in which disk space is freed.
        encoded: Columns kept as they were encoded, by default the images.
        kept_snapshots: How many of the newest snapshots can be rolled back to.
        ram_bytes: If given, compressed columns beyond this size are read back from the journal when
            they are sampled.
        make_selector: Makes the selector for this many slots.
        task_column: The column that says which of several tasks a row is of.
        is_mapped: Keep large plain columns (latents) in a memory-mapped file instead of in memory.
        progress: Told how far the reading of the journal has come.

    Raises:
        CheckpointError: If the directory belongs to another shard or to rows of another layout.
        JournalHeldError: If another process holds the directory.
        ConfigurationError: If a journal has no directory, or the capacity cannot hold a window.
    """

    def __init__(
        self,
        index: int,
        columns: Mapping[str, ArraySpec],
        sampling: SamplingSpec,
        *,
        capacity_rows: int,
        capacity_bytes: int | None = None,
        directory: Path | None = None,
        durability: Durability = "journal",
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        encoded: tuple[str, ...] | None = None,
        kept_snapshots: int = 2,
        ram_bytes: int | None = None,
        is_mapped: bool = False,
        make_selector: Callable[[int], Selector] = Uniform,
        task_column: str | None = None,
        progress: RecoveryProgress | None = None,
    ) -> None:
        self.index = index
        self._progress = progress or RecoveryProgress()
        self.columns = dict(columns)
        self.sampling = sampling
        self.capacity_rows = capacity_rows
        self.durability = durability
        self.is_mapped = is_mapped
        self._mutable = _extras(columns)
        images = [
            name for name, spec in columns.items() if spec.is_image and name not in self._mutable
        ]
        self._cold_columns = images if encoded is None else list(encoded)
        self._cold_directory = directory if ram_bytes is not None and durability != "none" else None
        self._make_buffer = partial(
            SequenceBuffer,
            columns,
            sampling,
            capacity_rows=capacity_rows,
            capacity_bytes=capacity_bytes,
            encoded=encoded,
            mutable=self._mutable,
            hot_bytes=ram_bytes,
            mapped_in=directory if is_mapped else None,
            shard=index,
            task_column=task_column,
        )
        self._make_selector = make_selector
        self.lock = threading.Lock()
        self._snapshot_lock = threading.Lock()
        self._pinned: list[int] = []
        self._has_new_weights = False
        self._fences = Fences(
            directory if durability != "none" else None, is_synced=durability == "fsync"
        )
        self.rows = self._empty_rows()
        self.journal: Journal | None = None
        self.recovered = RecoveryReport()
        if durability == "none":
            return
        if directory is None:
            raise ConfigurationError(
                f"replay shard {index}: durability {durability!r} needs a directory; "
                "name one or say none"
            )
        self.journal = Journal(directory, fsync=durability == "fsync", segment_bytes=segment_bytes)
        try:
            self._files = SnapshotStore(directory, kept_snapshots, fsync=durability == "fsync")
            self._files.claim(shard_identity(index, columns))
            self._recover(self.journal)
            self._restore_newest()
        except BaseException:
            self.journal.close()
            raise

    def append(self, chunk: Chunk) -> bool:
        """Acknowledge a chunk: when this returns, its rows are stored as durably as promised.

        Returns:
            False if this chunk was stored before; it is ignored, and its rows count as duplicate.

        Raises:
            CheckpointError: If the payload is damaged.
            ShapeMismatchError: If the rows have another layout or other counts than the chunk says,
                or its name cannot be journalled.
            FencedError: If the stream goes on elsewhere, see :meth:`fence`.
            EpisodeOverError: If a client goes on with an episode that it has ended.
            StateError: If the journal cannot be written. Nothing has changed then, and the chunk
                may be sent again; except after a failed fsync, or a chunk that could not be stored
                once it was in the journal, when nothing is acknowledged until the shard is opened
                again (see :attr:`failure`).
        """
        check_name(chunk)
        rows = self.rows.split(chunk)
        with self.lock:
            self._fences.check(chunk.stream)
            is_new = self.rows.is_new(chunk)
            if is_new:
                self.rows.check_episode(chunk, rows)
            inserted_s = time.time()
            place = None
            if self.journal is not None:
                place = self._write(self.journal, chunk, inserted_s, is_new=is_new)
            try:
                if is_new:
                    self.rows.store(chunk, rows, inserted_s, place)
                else:
                    self.rows.counters.duplicate += chunk.num_rows
            except BaseException as error:
                if self.journal is not None:  # it has rows now that are not here, or half of them
                    self.journal.fail(f"a chunk that is in it could not be stored ({error!r})")
                raise
        if self.journal is not None:
            self.journal.sync()
        return is_new

    def sample(self, request: SampleRequest) -> SampledWindows:
        """Draw windows; equal requests on equal content give equal windows.

        Raises:
            BufferError: If no window is complete.
        """
        return self.draw([request]).decode()

    def draw(self, requests: Sequence[SampleRequest]) -> EncodedWindows:
        """The windows of all requests, one after the other, as :meth:`sample` draws them, with the
        decoding left to do.

        Raises:
            BufferError: If no window is complete.
        """
        draws = [
            (request.windows, np.random.default_rng(list(request.seed))) for request in requests
        ]
        files = [request.files for request in requests]
        with self.lock:
            has_share = any(number is not None for number in files)
            return self.rows.buffer.draw(draws, files if has_share else None)

    def write_back(
        self, row_ids: npt.NDArray[np.int64], refreshed: Mapping[str, np.ndarray]
    ) -> WriteBack:
        """Overwrite extras of rows ``[n, T]`` with columns ``[n, T, ...]``; rows that were evicted
        meanwhile are rejected.
        """
        with self.lock:
            return WriteBack(*self.rows.buffer.write_back(row_ids, refreshed))

    def update_priorities(
        self, start_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> WriteBack:
        """Give windows, named by their first rows, new priorities; those that were evicted
        meanwhile are rejected.
        """
        with self.lock:
            self._has_new_weights = True
            return WriteBack(*self.rows.buffer.update_priorities(start_ids, priorities))

    def save_weights(self) -> bool:
        """Write down what priorities came to, for a restart; inserts do not wait for it.

        Returns:
            True if there was something new to write.

        Raises:
            OSError: If the disk takes no more.
        """
        with self._snapshot_lock:
            with self.lock:
                if self.journal is None or not self._has_new_weights:
                    return False
                copied = self.rows.buffer.export_weights()
                self._has_new_weights = False
            if len(copied[1]):
                self._files.save_weights(*copied)
            return bool(len(copied[1]))

    @property
    def plain_row_bytes(self) -> int:
        """What a draw copies of every row; encoded columns are left as they are stored."""
        return sum(
            spec.nbytes for name, spec in self.columns.items() if name not in self._cold_columns
        )

    @property
    def is_busy(self) -> bool:
        """True while a thread is inside that may take a while: a snapshot that copies, a journal
        whose disk is slow.
        """
        return self.lock.locked()

    @property
    def failure(self) -> str:
        """Why it must be opened again before it takes another chunk, in a sentence; empty while it
        takes them.
        """
        return "" if self.journal is None else self.journal.failure

    def row_counters(self) -> RowCounters:
        """Where every row went."""
        with self.lock:
            return self.rows.row_counters()

    def memory_bytes(self) -> int:
        """What stored rows take of memory; the rest of ``row_counters().payload_bytes`` is read
        from disk.
        """
        return self.rows.buffer.nbytes - self.rows.buffer.cold_bytes

    def live_windows(self) -> int:
        """Windows that can be drawn now: this shard's weight when samples are split over shards."""
        return self.rows.buffer.num_windows

    def window_counts(self) -> tuple[int, int]:
        """:meth:`live_windows`, and those of them that begin at rows from files, where they are
        kept apart; both of one moment.
        """
        with self.lock:
            return self.rows.buffer.num_windows, self.rows.buffer.starts.file_count

    def take_drawn(self) -> tuple[int, int]:
        """Windows drawn since the last call where files are kept apart: from the run, and from
        files.
        """
        with self.lock:
            starts = self.rows.buffer.starts
            drawn, starts.drawn = starts.drawn, (0, 0)
        return drawn

    def next_seq(self, stream: StreamId) -> int:
        """Number of the chunk that would continue a stream."""
        with self.lock:
            return self.rows.buffer.next_seq(stream)

    def is_new(self, chunk: Chunk) -> bool:
        """True for a chunk that was never stored, be it late."""
        with self.lock:
            return self.rows.is_new(chunk)

    def fence(self, slot: int, incarnation: int) -> dict[int, int]:
        """Let no one write the streams of a gateway's session any more.

        Returns:
            Per env whose rows are known: the client's step after the last one that is stored.

        Raises:
            OSError: If the disk takes no more; nothing is fenced then.
        """
        with self.lock:
            self._fences.add(slot, incarnation)
            return {
                stream.env: step
                for stream, step in self.rows.next_steps.items()
                if stream[:2] == (slot, incarnation)
            }

    def mark_lost(self, acknowledged: RowCounters) -> int:
        """Admit the loss of rows that the rest of the system saw acknowledged by this shard, and
        that its disk does not have.

        Args:
            acknowledged: The last counters that anybody got from this shard.

        Returns:
            Rows newly counted as lost; row ids go on after those that were given out.
        """
        with self.lock:
            known = self.rows.buffer.next_row
            newly = self.rows.mark_lost(acknowledged)
            if self.rows.buffer.next_row > known and self.journal is not None:
                self._record_loss(self.journal)
        if newly:
            logger.warning("shard-%d: %d acknowledged rows are lost", self.index, newly)
        return newly

    def snapshot(self) -> ShardSnapshot:
        """Cut here: a checkpoint that keeps the snapshot can come back to exactly these rows with
        :meth:`rollback`.

        Inserts wait only while mutable columns and priorities, if there are any, are copied in
        memory; writing them blocks no caller.

        Raises:
            StateError: If the shard must be opened again first (see :attr:`failure`).
        """
        with self._snapshot_lock:
            with self.lock:
                next_row = self.rows.buffer.next_row
                served = self.rows.buffer.online_served
                if self.journal is None:
                    return ShardSnapshot(-1, 0, -1, next_row, served)
                if self.journal.failure:
                    raise StateError(self.journal.failure)
                if self.journal.needs_rotation:
                    self._rotate(self.journal)
                place = self.journal.position
                oldest = self.rows.oldest_needed()
                self._pinned = [oldest]
                copied = self.rows.buffer.export_mutable()
                learnt = self.rows.buffer.export_weights()
            mutable_file = self._files.save_mutable(*copied) if self._mutable else ""
            weights_file = self._files.save_weights(*learnt) if len(learnt[1]) else ""
            snapshot = ShardSnapshot(*place, oldest, next_row, served, mutable_file, weights_file)
            self.journal.sync()  # before anything says that it reaches so far
            with self.lock:
                self._files.set_snapshots([*self._files.snapshots, snapshot])
                self._pinned = []
            return snapshot

    def rollback(self, snapshot: ShardSnapshot) -> None:
        """Return to a snapshot, forgetting everything since.

        Raises:
            CheckpointError: If the journal no longer holds what the snapshot needs.
        """
        with self.lock:
            if self.journal is None:
                held = self.rows.buffer.next_row
                if held != snapshot.next_row:
                    raise CheckpointError(
                        f"replay shard {self.index} holds {held} rows instead of the "
                        f"{snapshot.next_row} of the snapshot: "
                        "with durability none nothing can be rolled back; use journal"
                    )
                return
            if (
                min(self.journal.segments, default=snapshot.oldest_segment + 1)
                > snapshot.oldest_segment
            ):
                raise CheckpointError(
                    f"replay shard {self.index}: what {snapshot} needs of the journal is "
                    "gone; only the newest snapshots are kept"
                )
            self.journal.truncate(JournalPosition(snapshot.segment, snapshot.offset))
            self.rows = self._empty_rows()
            self._recover(self.journal, online_served=snapshot.online_served)
            self._restore_mutable(snapshot)
            if snapshot.weights_file:
                self._restore_weights(snapshot.weights_file)
            if self.rows.buffer.next_row != snapshot.next_row:
                raise CheckpointError(
                    f"replay shard {self.index}: {self.rows.buffer.next_row} rows "
                    f"found instead of {snapshot.next_row}"
                )
            self._files.set_snapshots(
                [kept for kept in self._files.snapshots if kept.next_row < snapshot.next_row]
                + [snapshot]
            )
            # newer ones name rows that are forgotten
            self._files.drop_weights(keep=snapshot.weights_file)

    def close(self) -> None:
        """Let go of the directory; rows stay in memory."""
        with self.lock:
            if self.journal is not None:
                self.journal.close()

    def _write(
        self, journal: Journal, chunk: Chunk, inserted_s: float, *, is_new: bool
    ) -> tuple[int, int, int]:
        """Journal a chunk, or that it came again; returns where."""
        if is_new:
            return self._append_record(journal, CHUNK, self.rows.to_record(chunk, inserted_s))
        return self._append_record(journal, DUPLICATE, Repeated.of(chunk).pack())

    def _append_record(
        self, journal: Journal, kind: int, parts: Sequence[bytes | memoryview]
    ) -> tuple[int, int, int]:
        if journal.needs_rotation:
            self._rotate(journal)
        return *journal.append(kind, parts), sum(len(part) for part in parts)

    def _rotate(self, journal: Journal) -> None:
        """Begin a segment, and delete those whose rows were all evicted and that no
        snapshot needs.
        """
        rows = self.rows
        journal.rotate(rows.head())
        rows.segment_rows[journal.position.segment] = rows.buffer.next_row
        keep = min(
            [
                rows.oldest_needed(),
                *self._pinned,
                *(snapshot.oldest_segment for snapshot in self._files.snapshots),
            ]
        )
        journal.drop_before(keep)
        rows.segment_rows = {
            number: row for number, row in rows.segment_rows.items() if number >= keep
        }

    def _empty_rows(self) -> ShardRows:
        cold = (
            SpilledChunks(self._cold_directory, self.columns, self._cold_columns)
            if self._cold_directory is not None
            else None
        )
        selector = self._make_selector(self.capacity_rows)
        return ShardRows(partial(self._make_buffer, cold=cold, selector=selector), self.columns)

    def _recover(self, journal: Journal, online_served: int | None = None) -> None:
        """Read the journal from its oldest segment into the empty buffer; windows found there count
        as seen unless told.
        """
        started = time.monotonic()
        oldest_segment = min(journal.segments, default=0)
        rows = self.rows
        recovery = Recovery(rows, oldest_segment, self.columns)
        with reading(journal.directory, "its journal holds what no shard has written"):
            progress = self._progress
            progress.total_bytes = journal.size_bytes()
            for segment in journal.read_segments():
                recovery.take_segment(segment)
                progress.read_bytes += segment.size
                progress.rows = rows.buffer.next_row
            current = journal.position.segment if journal.segments else None
            recovery.finish(current, is_rollback=online_served is not None)
        if recovery.repeated:
            logger.warning(
                "shard-%d: %d chunks stand twice in its journal, and were taken once",
                self.index,
                recovery.repeated,
            )
        counters = rows.row_counters()
        if not counters.is_balanced or min(dataclasses.astuple(counters)) < 0:
            raise CheckpointError(
                f"{journal.directory}: its journal gives counters that do not add up ({counters}); "
                "restore it from a copy"
            )
        rows.buffer.mark_served(
            rows.buffer.online_queued if online_served is None else online_served
        )
        if recovery.is_news:
            self._record_loss(journal)
        damage = journal.damage
        seconds = time.monotonic() - started
        self.recovered = RecoveryReport(
            recovery.chunks,
            len(rows.buffer),
            damage.torn_bytes,
            damage.corrupt_bytes,
            rows.counters.lost,
            round(seconds, 3),
        )
        if self.recovered.text:
            logger.info("shard-%d: %s", self.index, self.recovered.text)

    def _record_loss(self, journal: Journal) -> None:
        """Write down where rows and counters stand, for the day on which the segments that show
        what is lost are deleted.
        """
        if journal.position.segment < 0:
            self._rotate(journal)
        # in the segment whose records lead up to it, even if that is full
        journal.append(LOST, [self.rows.head()])

    def _restore_mutable(self, snapshot: ShardSnapshot) -> None:
        if snapshot.mutable_file:
            specs = {column: self.columns[column] for column in self._mutable}
            with reading(snapshot.mutable_file, "holds columns of other rows"):
                num_rows = self.rows.buffer.next_row
                found = self._files.load_mutable(snapshot.mutable_file, specs, num_rows)
                self.rows.buffer.write_back(*found)

    def _restore_weights(self, name: str) -> None:
        with reading(name, "holds priorities of other rows"):
            is_restored = self.rows.buffer.restore_weights(*self._files.load_weights(name))
        if not is_restored:
            logger.warning(
                "shard-%d: the priorities on disk are another selector's; they start over",
                self.index,
            )

    def _restore_newest(self) -> None:
        """A restart goes on with the extras of the newest snapshot and the priorities that were
        written last.

        Without the former, rows have the extras that they were stored with; without the latter,
        training is slower to focus.
        """
        try:
            if self._files.snapshots:
                self._restore_mutable(self._files.snapshots[-1])
        except (CheckpointError, ShapeMismatchError) as error:
            logger.warning("shard-%d: extras are as they were stored: %s", self.index, error)
        name = self._files.newest_weights
        try:
            if name:
                self._restore_weights(name)
        except (CheckpointError, ShapeMismatchError) as error:
            logger.warning("shard-%d: priorities start over: %s", self.index, error)


def _extras(columns: Mapping[str, ArraySpec]) -> frozenset[str]:
    """The agent's own columns: they may be written back."""
    return frozenset(SequenceBatch.from_columns(columns).extras)
