"""THE storage of sequences: used by the replay shard and by the public ``training.ReplayBuffer``.

Rows of many streams lie in insertion order; a row's number in that order is its id for ever. Plain
columns are rings indexed by ``id % capacity``, the small ones interleaved in one ring, so that
reading a row touches few cache lines; encoded columns (images) stay the compressed blobs that
arrived, one per chunk, and are decoded when sampled. Each row knows the id of its successor in its
stream, so a window is T steps along that chain: windows never join two streams and never jump a
gap. No Python object exists per row, and memory is touched only as rows arrive.

Which rows start a valid window is kept incrementally: row r does when T - 1 successors are stored
and, unless episodes may be crossed, none of them is ``is_first``. Starts are ranked by row id, so a
draw depends on the stored rows, the selector and the generator only. (The authors of TD-MPC2 draw
an episode first and then a start in it, which prefers short episodes.)

The end of an episode that a crash cut off is inferred: when the next row of the stream is
``is_first`` or the stream has a gap, the row before counts as truncated unless it is a last row
already.

Not thread safe, except that ``EncodedWindows.decode`` may run without the lock that guards the
buffer. n windows, T rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import BufferError, ConfigurationError, ShapeMismatchError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import Rows, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_runs import ChunkRun
from worldloom.data.chunk_table import ChunkTable, ColdStore
from worldloom.data.codec import EncodedColumn
from worldloom.data.rings import encoded_columns, make_rings
from worldloom.data.selectors import FILE, POLICY, Draws, Selector
from worldloom.data.stream_tails import NO_ROW, StreamPosition, StreamTails, Tail
from worldloom.data.window_starts import WindowStarts
from worldloom.data.windows import EncodedWindows, SampledWindows

__all__ = ["SequenceBuffer"]

Ids = npt.NDArray[np.int64]


class SequenceBuffer:
    """Append-only rows of many streams, evicted first in, first out, sampled as windows.

    Example::

        buffer = SequenceBuffer(env_spec.columns(), agent_spec.sampling, capacity_rows=100_000)
        buffer.append(StreamId(0, 0, 0), 0, rows)
        windows = buffer.sample(16, np.random.default_rng(0))

    Args:
        columns: What every row has.
        sampling: Length of windows, and whether they may cross episodes; ``online`` serves each new
            window once.
        capacity_rows: Rows kept; exact at every moment.
        capacity_bytes: If given, the oldest chunks also go while the rows take more than this (one
            chunk always stays).
        encoded: Columns kept as the blobs they arrive in; by default the images. Arrays given for
            them are kept as they are.
        mutable: Columns that :meth:`write_back` may change; never encoded.
        selector: Which valid starts are drawn; ``Uniform(capacity_rows)`` by default.
        hot_bytes: With ``cold``: encoded columns beyond this size are let go, the oldest first, and
            read again when sampled.
        cold: Where they can be read.
        mapped_in: Folder whose disk holds large plain columns; None keeps them in memory.
        shard: Which shard of a replay this is, for :attr:`SampledWindows.shard`.
        task_column: The column that says which of several tasks a row is of.

    Raises:
        ConfigurationError: If the capacity cannot hold a window, or a mutable column is unknown or
            encoded.
    """

    def __init__(
        self,
        columns: Mapping[str, ArraySpec],
        sampling: SamplingSpec,
        *,
        capacity_rows: int,
        capacity_bytes: int | None = None,
        encoded: Collection[str] | None = None,
        mutable: Collection[str] = (),
        selector: Selector | None = None,
        hot_bytes: int | None = None,
        cold: ColdStore | None = None,
        mapped_in: Path | None = None,
        shard: int = 0,
        task_column: str | None = None,
    ) -> None:
        if capacity_rows < sampling.least_rows:
            raise ConfigurationError(
                f"replay capacity must hold a window, so {sampling.least_rows} rows, "
                f"got {capacity_rows} rows; raise the capacity"
            )
        names = encoded_columns(columns, mutable) if encoded is None else set(encoded)
        if names & set(mutable) or set(mutable) - set(columns):
            raise ConfigurationError(
                "mutable columns must be stored and not encoded, got "
                f"{sorted(mutable)}, encoded {sorted(names)}"
            )
        self.columns = dict(columns)
        self.sampling = sampling
        self.capacity_rows = capacity_rows
        self.capacity_bytes = capacity_bytes
        self.mutable = frozenset(mutable)
        self._encoded = {name: spec for name, spec in columns.items() if name in names}
        plain = {name: spec for name, spec in columns.items() if name not in names}
        self._records, self._rings = make_rings(plain, capacity_rows, mapped_in)
        self._mapped_row_bytes = sum(
            int(ring[0].nbytes) for ring in self._rings.values() if isinstance(ring, np.memmap)
        )
        self._small = [name for name in plain if name in (self._records.dtype.names or ())]
        self._row_bytes = sum(spec.nbytes for spec in plain.values())
        self._next_row_of = self._records["#next_row"]
        self._chunk_of = self._records["#chunk"]
        self.starts = WindowStarts(capacity_rows, selector)
        self._task_column = task_column
        self._tails = StreamTails(sampling)
        self._shard = shard
        self._chunks = ChunkTable(hot_bytes, cold)
        self._first_row = 0
        self._next_row = 0
        self._holes: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Rows stored."""
        return self._next_row - self._first_row - sum(stop - start for start, stop in self.holes)

    @property
    def num_windows(self) -> int:
        """Valid window starts."""
        return self.starts.count

    @property
    def next_row(self) -> int:
        """Id that the next row will get: the rows ever appended (and skipped)."""
        return self._next_row

    @property
    def first_row(self) -> int:
        """Id below which every row is gone."""
        return self._first_row

    @property
    def holes(self) -> list[tuple[int, int]]:
        """Ids that were used up by :meth:`skip` and are not yet below :attr:`first_row`, as
        half-open ranges.
        """
        return [(max(start, self._first_row), stop) for start, stop in self._holes]

    @property
    def _stored(self) -> range:
        return range(self._first_row, self._next_row)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored rows: plain columns at full size, encoded ones as they are kept, in
        memory or cold.
        """
        return len(self) * self._row_bytes + self._chunks.encoded_bytes

    @property
    def cold_bytes(self) -> int:
        """Part of :attr:`nbytes` that is not in memory because it can be read elsewhere."""
        return (
            self._chunks.encoded_bytes - self._chunks.hot_bytes + self._mapped_row_bytes * len(self)
        )

    @property
    def online_queued(self) -> int:
        """Windows ever put into the online queue."""
        return self.starts.online.queued

    @property
    def online_served(self) -> int:
        """Windows ever taken from the online queue, stale ones included."""
        return self.starts.online.served

    def append(
        self,
        stream: StreamId,
        seq: int,
        rows: Mapping[str, np.ndarray | EncodedColumn],
        *,
        version: int = 0,
        inserted_s: float = 0.0,
        place: Any = None,
        sources: Sequence[int] | None = None,
    ) -> int:
        """Store consecutive rows of one stream.

        A ``seq`` above the expected one is a gap, which no window jumps. One below it is a late
        chunk: its rows are stored and can be sampled, but are joined to nothing. Telling duplicates
        from late chunks is the caller's business.

        Args:
            stream: Whose rows.
            seq: Number of this chunk in its stream.
            rows: Per column ``[rows, ...]``, or that encoded.
            version: Policy update number that acted them.
            inserted_s: ``time.time()`` of the insertion.
            place: Where ``cold`` finds the chunk; one without a place stays in memory.
            sources: Who chose the actions (``selectors.SOURCES``); None for the policy, or the
                file that the stream came from.

        Returns:
            Rows evicted to make room.

        Raises:
            BufferError: If the chunk alone exceeds the capacity.
            ShapeMismatchError: If a column is missing or unknown, or lengths differ.
        """
        plain, encoded = self._split(rows)
        first_flags = plain["is_first"]
        ids = np.arange(self._next_row, self._next_row + len(first_flags), dtype=np.int64)
        if len(ids) > self.capacity_rows:
            raise BufferError(
                f"a chunk of {len(ids)} rows does not fit into a replay of "
                f"{self.capacity_rows} rows"
            )
        stored_before = len(self)
        self._evict_to(self._next_row + len(ids) - self.capacity_rows)
        slots = ids % self.capacity_rows
        for name, ring in self._rings.items():
            ring[slots] = plain[name]
        tail, cut_off = self._tails.open(stream, seq)
        self._close_episode(cut_off)
        own = FILE if stream.is_imported else POLICY
        self.starts.note_sources(slots, np.asarray(own if sources is None else sources, np.uint8))
        if self._task_column is not None:
            self.starts.note_tasks(slots, plain[self._task_column])
        self._link(tail, ids, slots, first_flags)
        self._record(ids, slots, version, inserted_s, encoded, place)
        self._next_row += len(ids)
        self._mark_starts(*self._tails.extend(tail, ids, first_flags))
        self._evict_bytes()
        return stored_before + len(ids) - len(self)

    @property
    def takes_runs(self) -> bool:
        """Whether chunks can come in runs: none of their columns is kept encoded."""
        return not self._encoded

    def append_run(self, run: ChunkRun) -> int:
        """As :meth:`append` for one chunk after the other, each the next of its stream, and all
        acted by the policy or of files.

        Args:
            run: Of no more rows than the capacity.

        Returns:
            Rows evicted to make room.
        """
        assert self.takes_runs
        assert run.rows <= self.capacity_rows
        stored_before = len(self)
        self._evict_to(self._next_row + run.rows - self.capacity_rows)
        lengths = run.lengths
        stops = self._next_row + np.cumsum(lengths)
        is_first = self._write_run(run, lengths)
        streams = [chunk.stream for chunk in run.chunks]
        tails = self._tails.extend_all(streams, lengths, self._next_row, is_first)
        self._link_run(tails.before, stops - lengths, stops, is_first)
        self._chunks.add_plain(stops)
        self._next_row += run.rows
        self._mark_starts(tails.starts, tails.places)
        self._evict_bytes()
        return stored_before + run.rows - len(self)

    def skip(self, rows: int) -> int:
        """Account for ``rows`` acknowledged rows that are lost: their ids are used up, and they
        count as holes until evicted.

        Returns:
            Stored rows that were evicted to make room.
        """
        if rows <= 0:
            return 0
        stored_before = len(self)
        stop = self._next_row + rows
        self._evict_to(stop - self.capacity_rows)
        ids = np.arange(max(self._next_row, self._first_row), stop, dtype=np.int64)
        self._chunk_of[ids % self.capacity_rows] = NO_ROW
        self._holes.append((self._next_row, stop))
        self._next_row = stop
        return stored_before - len(self)

    def sample(self, windows: int, rng: np.random.Generator) -> SampledWindows:
        """Draw windows with replacement (those of the online queue first, each once).

        Raises:
            BufferError: If no window is complete.
        """
        return self.draw([(windows, rng)]).decode()

    def draw(self, draws: Draws, files: Sequence[int | None] | None = None) -> EncodedWindows:
        """As :meth:`sample` several times in one, one after the other, with the decoding of encoded
        columns left to do.

        A lock that guards the buffer need not be held for the decoding.

        Args:
            draws: How many windows, and with which generators.
            files: How many of each draw begin at rows from files, where the selector keeps them
                apart; None leaves that to chance, for one draw or for all.
        """
        if not self.starts.count:
            kind = "across episodes" if self.sampling.cross_episodes else "inside one episode"
            raise BufferError(
                f"replay holds {len(self)} rows but no {self.sampling.window_rows} "
                f"consecutive ones of one stream {kind}; "
                "insert more rows or sample shorter windows"
            )
        online = self.sampling.online
        starts = (
            self.starts.draw(draws, self._first_row, online=online)
            if files is None
            else self.starts.draw_apart(draws, files, self._first_row, online=online)
        )
        return self._gather(starts, self.sampling.window_rows)

    def windows_at(self, starts: Ids, rows: int) -> EncodedWindows:
        """Windows of ``rows`` rows that begin at rows of the caller's choice, whatever ``sampling``
        says.

        The caller answers for it that every start is stored and has ``rows - 1`` successors in its
        stream.
        """
        return self._gather(starts, rows)

    def write_back(self, row_ids: Ids, columns: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Overwrite mutable columns of rows that are still stored.

        Args:
            row_ids: Any shape.
            columns: Per mutable column an array of that shape and then the column's own.

        Returns:
            Rows written, and rows that had been evicted meanwhile.

        Raises:
            ShapeMismatchError: If a column is not mutable or has the wrong shape.
        """
        ids = np.asarray(row_ids).reshape(-1)
        slots = ids % self.capacity_rows
        alive = (ids >= self._first_row) & (ids < self._next_row)
        alive[alive] &= self._chunk_of[slots[alive]] != NO_ROW
        for name, values in columns.items():
            expected = (
                (*np.shape(row_ids), *self.columns[name].shape) if name in self.mutable else None
            )
            if values.shape != expected:
                raise ShapeMismatchError(
                    f"write-back of column {name!r} (mutable: {sorted(self.mutable)})",
                    expected,
                    values.shape,
                )
            self._rings[name][slots[alive]] = values.reshape(len(ids), *self.columns[name].shape)[
                alive
            ]
        return int(np.count_nonzero(alive)), int(len(ids) - np.count_nonzero(alive))

    def update_priorities(
        self, start_ids: Ids, priorities: npt.NDArray[np.float64]
    ) -> tuple[int, int]:
        """Give windows, named by their first row's id, new priorities; returns how many were
        applied and how many are gone.
        """
        return self.starts.update_priorities(start_ids, priorities, self._stored)

    def export_weights(self) -> tuple[Ids, npt.NDArray[np.float64]]:
        """What was learnt of windows, see :meth:`WindowStarts.export_weights`; no weights if the
        selector has no priorities.
        """
        return self.starts.export_weights(self._stored)

    def restore_weights(self, start_ids: Ids, weights: npt.NDArray[np.float64]) -> bool:
        """Inverse of :meth:`export_weights`; False, and nothing has changed, if the weights are
        another selector's.
        """
        return self.starts.restore_weights(start_ids, weights, self._stored)

    def export_mutable(self) -> tuple[Ids, Rows]:
        """Ids and values of the mutable columns of all stored rows: what :meth:`write_back` needs
        to restore them.
        """
        ids = np.arange(self._first_row, self._next_row, dtype=np.int64)
        ids = ids[self._chunk_of[ids % self.capacity_rows] != NO_ROW]
        return ids, {
            name: self._rings[name][ids % self.capacity_rows] for name in sorted(self.mutable)
        }

    def next_seq(self, stream: StreamId) -> int:
        """Number that the next chunk of a stream has if none is missing."""
        return self._tails.next_seq(stream)

    def has_ended(self, stream: StreamId) -> bool:
        """True if the row that the next chunk of a stream would follow is stored, and ends an
        episode.
        """
        row = self._tails.last_row(stream)
        slot = row % self.capacity_rows
        return row >= self._first_row and bool(
            self._rings["terminated"][slot] | self._rings["truncated"][slot]
        )

    def streams(self) -> dict[StreamId, StreamPosition]:
        """The position of every stream ever seen."""
        return self._tails.positions()

    def restore(
        self, streams: Mapping[StreamId, StreamPosition], *, next_row: int, online_queued: int = 0
    ) -> None:
        """Continue, in a new buffer, from a point whose earlier rows were all evicted."""
        self._first_row = self._next_row = next_row
        self.starts.online.queued = self.starts.online.served = online_queued
        self._tails.restore(streams)

    def know_streams(self, streams: Mapping[StreamId, StreamPosition]) -> None:
        """Where streams stand of which nothing has been appended here; others stay as they are."""
        self._tails.restore(streams)

    def mark_served(self, served: int) -> None:
        """Drop windows from the online queue until ``served`` have ever left it."""
        self.starts.online.discard_until(served)

    def _split(
        self, rows: Mapping[str, np.ndarray | EncodedColumn]
    ) -> tuple[Rows, dict[str, EncodedColumn]]:
        if set(rows) != set(self.columns):
            raise ShapeMismatchError("columns of rows", sorted(self.columns), sorted(rows))
        plain = {}
        encoded = {}
        for name, value in rows.items():
            if name in self._encoded:
                encoded[name] = (
                    value.owned() if isinstance(value, EncodedColumn) else EncodedColumn.raw(value)
                )
            else:
                plain[name] = value.decode() if isinstance(value, EncodedColumn) else value
        length = len(plain["is_first"])
        for name, spec in self.columns.items():
            if rows[name].shape != (length, *spec.shape) or not length:
                raise ShapeMismatchError(
                    f"column {name!r} of rows", (max(1, length), *spec.shape), rows[name].shape
                )
        return plain, encoded

    def _close_episode(self, row: int) -> None:
        """Let a row that turned out to be an episode's last one count as truncated."""
        if row >= self._first_row and row != NO_ROW:
            slot = row % self.capacity_rows
            self._rings["truncated"][slot] |= ~self._rings["terminated"][slot]

    def _link(self, tail: Tail, ids: Ids, slots: Ids, first_flags: np.ndarray) -> None:
        self._next_row_of[slots[:-1]] = ids[1:]
        self._next_row_of[slots[-1]] = NO_ROW
        if tail.last_row >= self._first_row and tail.last_row != NO_ROW:
            self._next_row_of[tail.last_row % self.capacity_rows] = ids[0]
        cut = slots[:-1][first_flags[1:]]
        self._rings["truncated"][cut] |= ~self._rings["terminated"][cut]
        if first_flags[0]:
            self._close_episode(tail.last_row)

    def _record(
        self,
        ids: Ids,
        slots: Ids,
        version: int,
        inserted_s: float,
        encoded: Mapping[str, EncodedColumn],
        place: Any,
    ) -> None:
        self._chunk_of[slots] = self._chunks.next_ordinal
        self._chunks.add(int(ids[0]), int(ids[-1]) + 1, encoded, place)
        self._records["#version"][slots] = version
        self._records["#inserted_s"][slots] = inserted_s

    def _write_run(self, run: ChunkRun, lengths: Ids) -> npt.NDArray[np.bool_]:
        """Fill the rings, but for links between chunks; returns ``is_first`` of all rows."""
        notes = {
            "#chunk": self._chunks.next_ordinal + np.arange(len(run)),
            "#version": np.array([chunk.version for chunk in run.chunks]),
            "#inserted_s": np.array([chunk.inserted_s for chunk in run.chunks]),
        }
        is_first = []
        at = self._next_row
        done = 0
        for chunks, columns in run.blocks():
            part = slice(done, done + chunks)
            stop = at + int(lengths[part].sum())
            slots = self._slots(at, stop)
            for name, value in columns.items():
                _copy(value, self._rings[name], slots)
            for name, of_chunks in notes.items():
                self._records[name][slots] = np.repeat(of_chunks[part], lengths[part])
            self._next_row_of[slots] = np.arange(at + 1, stop + 1)
            is_first.append(columns["is_first"].reshape(-1))
            at = stop
            done += chunks
        ids = np.arange(self._next_row, at)
        slots = ids % self.capacity_rows
        sources = [FILE if chunk.stream.is_imported else POLICY for chunk in run.chunks]
        self.starts.note_sources(slots, np.repeat(np.array(sources, np.uint8), lengths))
        if self._task_column is not None:
            self.starts.note_tasks(slots, self._rings[self._task_column][slots])
        return np.concatenate(is_first)

    def _slots(self, first: int, stop: int) -> slice | Ids:
        """Where rows are that follow each other: a slice, unless the ring ends between them."""
        begin = first % self.capacity_rows
        end = begin + stop - first
        if end <= self.capacity_rows:
            return slice(begin, end)
        return np.arange(begin, end) % self.capacity_rows

    def _link_run(self, before: Ids, begins: Ids, stops: Ids, is_first: np.ndarray) -> None:
        """Join each chunk to the row before it in its stream, and end the episodes there."""
        self._next_row_of[(stops - 1) % self.capacity_rows] = NO_ROW
        is_joined = (before >= self._first_row) & (before != NO_ROW)
        self._next_row_of[before[is_joined] % self.capacity_rows] = begins[is_joined]
        previous = self._next_row - 1 + np.arange(len(is_first))
        previous[begins - self._next_row] = np.where(is_joined, before, NO_ROW)
        cut = previous[is_first]
        cut = cut[cut != NO_ROW] % self.capacity_rows
        self._rings["truncated"][cut] |= ~self._rings["terminated"][cut]

    def _mark_starts(self, starts: Ids, places: Ids) -> None:
        """Let windows that are complete now be drawn."""
        self.starts.add(starts[(starts >= self._first_row) & (places % self.sampling.stride == 0)])
        if self.sampling.online:
            self.starts.queue(starts[places % self.sampling.window_rows == 0])

    def _evict_to(self, first_row: int) -> None:
        """Forget every row below ``first_row``."""
        if first_row <= self._first_row:
            return
        gone = (
            np.arange(self._first_row, min(first_row, self._next_row), dtype=np.int64)
            % self.capacity_rows
        )
        self.starts.evict(gone)
        self._first_row = first_row
        self._chunks.drop_before(first_row)
        self._holes = [hole for hole in self._holes if hole[1] > first_row]

    def _evict_bytes(self) -> None:
        while (
            self.capacity_bytes is not None
            and self.nbytes > self.capacity_bytes
            and len(self._chunks) > 1
        ):
            self._evict_to(self._chunks.oldest_stop)

    def _follow(self, starts: Ids, rows: int) -> Ids:
        """Ids of ``rows`` rows (T) from each start: [n, T].

        Rows of one chunk have consecutive ids, so we guess that all have, and shift the rest of a
        window where a link says otherwise: there are as many rounds as a window has chunks, not
        rows.
        """
        ids = starts[:, None] + np.arange(rows)
        while True:
            successor = self._next_row_of[ids[:, :-1] % self.capacity_rows]
            wrong = successor != ids[:, 1:]
            windows = np.flatnonzero(wrong.any(axis=1))
            if not len(windows):
                return ids
            at = wrong[windows].argmax(axis=1)
            shift = successor[windows, at] - ids[windows, at + 1]
            ids[windows] += np.where(np.arange(ids.shape[1]) > at[:, None], shift[:, None], 0)

    def _gather(self, starts: Ids, rows: int) -> EncodedWindows:
        ids = self._follow(starts, rows)
        slots = ids % self.capacity_rows
        records = self._records.take(slots)
        columns = {
            name: ring.take(slots, axis=0)
            for name, ring in self._rings.items()
            if name not in self._small
        }
        columns.update({name: np.ascontiguousarray(records[name]) for name in self._small})
        ordinals = records["#chunk"]
        trained = records[:, min(self.sampling.context, rows - 1)]
        versions = trained["#version"].astype(np.int64)
        inserted_s = trained["#inserted_s"].copy()
        chunks = self._chunks.open(np.unique(ordinals).tolist()) if self._encoded else {}
        shard = np.full(len(starts), self._shard)
        plain = SampledWindows(columns, ids, shard, versions, inserted_s)
        return EncodedWindows(plain, chunks, ordinals, self._encoded)


def _copy(value: np.ndarray, ring: np.ndarray, slots: slice | Ids) -> None:
    """Copy rows, ``[chunks, rows, ...]`` or ``[rows, ...]``, to slots that follow each other."""
    if isinstance(slots, slice):
        ring[slots].reshape(value.shape)[...] = value
    else:
        ring[slots] = value.reshape(len(slots), *ring.shape[1:])
