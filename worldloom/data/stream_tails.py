"""Where valid windows start: follows the open end of every stream and says which windows new rows
complete.

A *run* is a maximal chain of rows that one window may cover: it ends at a gap and, unless episodes
may be crossed, where an episode begins. A row at place p of its run (from 0) completes the window
that starts T - 1 rows before it, once p >= T - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId

__all__ = ["NO_ROW", "StreamPosition", "StreamTails", "Tail"]

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
