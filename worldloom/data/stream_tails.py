"""Where valid windows start: follows the open end of every stream and says which windows new rows
complete.

A *run* is a maximal chain of rows that one window may cover: it ends at a gap and, unless episodes
may be crossed, where an episode begins. A row at place p of its run (from 0) completes the window
that starts T - 1 rows before it, once p >= T - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId

__all__ = ["NO_ROW", "RunTails", "StreamPosition", "StreamTails", "Tail"]

Ids = npt.NDArray[np.int64]
NO_ROW = -1
"""Id of a row that is not stored."""


class StreamPosition(NamedTuple):
    """How far a stream has come: the seq of its next chunk, and the rows of its open run."""

    next_seq: int
    run_rows: int


@dataclass(slots=True)
class Tail:
    """The open end of a stream.

    Attributes:
        recent: Ids of the last ``min(run_rows, T - 1)`` rows of the run, NO_ROW where they were
            evicted before we knew them.
        next_seq: Number of the chunk that would continue it.
        run_rows: Rows of the open run.
        last_row: Id of the newest row, NO_ROW after a break.
    """

    recent: Ids
    next_seq: int = 0
    run_rows: int = 0
    last_row: int = NO_ROW


class RunTails(NamedTuple):
    """What a run of n chunks has added to tails.

    Attributes:
        before: Id of the row that each chunk follows, ``[n]``; NO_ROW for the first of a stream.
        starts: Of the windows that are complete now, in the order of the rows that complete them;
            NO_ROW if evicted long ago.
        places: Of these starts in their run.
    """

    before: Ids
    starts: Ids
    places: Ids


class StreamTails:
    """The tails of all streams.

    Args:
        sampling: Length of windows and whether they may cross episodes.
    """

    def __init__(self, sampling: SamplingSpec) -> None:
        self._reach = sampling.window_rows - 1
        self._cross_episodes = sampling.cross_episodes
        self._tails: dict[StreamId, Tail] = {}

    def next_seq(self, stream: StreamId) -> int:
        """Number of the chunk that would continue a stream; 0 for a new one."""
        tail = self._tails.get(stream)
        return tail.next_seq if tail else 0

    def last_row(self, stream: StreamId) -> int:
        """Id of the row that the next chunk of a stream would follow; NO_ROW if none is known."""
        tail = self._tails.get(stream)
        return tail.last_row if tail else NO_ROW

    def positions(self) -> dict[StreamId, StreamPosition]:
        """The position of every stream ever seen."""
        return {
            stream: StreamPosition(tail.next_seq, tail.run_rows)
            for stream, tail in self._tails.items()
        }

    def restore(self, positions: Mapping[StreamId, StreamPosition]) -> None:
        """Inverse of :meth:`positions`, when the rows before are gone; streams that are known
        already stay as they are.
        """
        for stream, position in positions.items():
            if stream in self._tails:
                continue
            known = min(position.run_rows, self._reach)
            self._tails[stream] = Tail(
                np.full(known, NO_ROW, np.int64), position.next_seq, position.run_rows
            )

    def open(self, stream: StreamId, seq: int) -> tuple[Tail, int]:
        """The tail that chunk ``seq`` continues, moved past it.

        A gap makes the tail start afresh; a late chunk gets a tail of its own, which is forgotten
        afterwards.

        Returns:
            The tail, and the row whose episode a gap has just ended (NO_ROW without one).
        """
        tail = self._tails.setdefault(stream, Tail(np.empty(0, np.int64)))
        if seq < tail.next_seq:
            return Tail(np.empty(0, np.int64)), NO_ROW
        cut_off = NO_ROW
        if seq > tail.next_seq:
            cut_off = tail.last_row
            tail.recent = np.empty(0, np.int64)
            tail.run_rows = 0
            tail.last_row = NO_ROW
        tail.next_seq = seq + 1
        return tail, cut_off

    def extend(self, tail: Tail, ids: Ids, is_first: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """Add rows to a tail.

        Returns:
            The starts of the windows they complete (NO_ROW if evicted long ago), and the places of
            these starts in their run.
        """
        index = np.arange(len(ids))
        run_start = np.full(len(ids), -tail.run_rows)
        if not self._cross_episodes:
            run_start = np.maximum.accumulate(np.where(is_first, index, run_start))
        place = index - run_start  # [rows]
        chain = np.concatenate([tail.recent, ids])
        complete = place >= self._reach
        starts = chain[(len(tail.recent) + index - self._reach)[complete]]
        tail.run_rows = int(place[-1]) + 1
        tail.recent = chain[len(chain) - min(tail.run_rows, self._reach) :]
        tail.last_row = int(ids[-1])
        return starts, place[complete] - self._reach

    def extend_all(
        self,
        streams: Sequence[StreamId],
        lengths: Ids,
        first_row: int,
        is_first: npt.NDArray[np.bool_],
    ) -> RunTails:
        """As :meth:`open` and :meth:`extend` for one chunk after the other, each of which is the
        next one of its stream.

        Args:
            streams: Of each chunk: n.
            lengths: Rows of each chunk, ``[n]``.
            first_row: Id of the first row; those of all chunks follow each other.
            is_first: Of all rows, ``[R]``.
        """
        total = len(is_first)
        begins = np.cumsum(lengths) - lengths
        chain, offsets = self._chain(streams, lengths)
        position = np.arange(total) + np.repeat(offsets - begins, lengths)  # [R], in the chain
        chain[position] = np.arange(first_row, first_row + total)
        before, run_rows = self._follow(streams, lengths, begins, first_row, is_first)
        # the last row before each that began a run, or a chunk, and where that run began
        is_border = np.zeros(total, bool)
        is_border[begins] = True
        run_start = np.zeros(total, np.int64)
        run_start[begins] = begins - run_rows
        if not self._cross_episodes:
            firsts = np.flatnonzero(is_first)
            is_border[firsts] = True
            run_start[firsts] = firsts
        index = np.arange(total)
        border = np.maximum.accumulate(np.where(is_border, index, 0))
        place = index - run_start[border]  # [R]
        complete = place >= self._reach
        starts = chain[position[complete] - self._reach]
        for stream, end in zip(reversed(streams), (offsets + lengths)[::-1].tolist(), strict=True):
            tail = self._tails[stream]
            if tail.last_row == chain[end - 1]:  # its newest chunk
                tail.recent = chain[end - min(tail.run_rows, self._reach) : end].copy()
        return RunTails(before, starts, place[complete] - self._reach)

    def _chain(self, streams: Sequence[StreamId], lengths: Ids) -> tuple[Ids, Ids]:
        """Room for the rows of every stream after those that its tail knows, filled with the
        latter; and where in it the rows of each chunk begin.
        """
        rows_of: dict[StreamId, int] = {}
        offsets = []
        for stream, rows in zip(streams, lengths.tolist(), strict=True):
            offsets.append(rows_of.get(stream, 0))
            rows_of[stream] = offsets[-1] + rows
        begin_of: dict[StreamId, int] = {}
        parts = []
        end = 0
        for stream, rows in rows_of.items():
            tail = self._tails.setdefault(stream, Tail(np.empty(0, np.int64)))
            parts += [tail.recent, np.empty(rows, np.int64)]
            begin_of[stream] = end + len(tail.recent)
            end = begin_of[stream] + rows
        places = [begin_of[stream] + at for stream, at in zip(streams, offsets, strict=True)]
        return np.concatenate(parts), np.array(places, np.int64)

    def _follow(
        self,
        streams: Sequence[StreamId],
        lengths: Ids,
        begins: Ids,
        first_row: int,
        is_first: npt.NDArray[np.bool_],
    ) -> tuple[Ids, Ids]:
        """Move the tails past all chunks, but for what they know of their last rows; returns the
        row before each chunk, and the rows of the run that was open then.
        """
        newest_first = np.full(len(lengths), -1)
        if not self._cross_episodes:
            firsts = np.flatnonzero(is_first)
            # of several in one chunk the last one stays
            newest_first[np.searchsorted(begins, firsts, side="right") - 1] = firsts
        before = []
        run_rows = []
        for stream, rows, begin, first in zip(
            streams, lengths.tolist(), begins.tolist(), newest_first.tolist(), strict=True
        ):
            tail = self._tails[stream]
            before.append(tail.last_row)
            run_rows.append(tail.run_rows)
            end = begin + rows
            tail.run_rows = end - first if first >= 0 else tail.run_rows + rows
            tail.next_seq += 1
            tail.last_row = first_row + end - 1
        return np.array(before, np.int64), np.array(run_rows, np.int64)
