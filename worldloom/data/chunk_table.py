"""The encoded columns of a buffer, one entry per chunk: in memory while there is room, else read
again from elsewhere; and how rows of a chunk are decoded.

A chunk without encoded columns takes a few bytes: where it ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import StateError
from worldloom.data.codec import EncodedColumn

__all__ = ["ChunkTable", "ColdStore", "OpenChunk", "Run"]


class ColdStore(Protocol):
    """Where encoded columns that a buffer let go of can be read again."""

    def open(self, place: Any) -> Callable[[], Mapping[str, EncodedColumn]]:
        """Called under the buffer's lock; the result is called without it, and works whatever was
        evicted meanwhile.
        """


class Run(NamedTuple):
    """Consecutive rows of one chunk that are neighbours in the output, too."""

    place: int
    row: int
    rows: int


class OpenChunk(NamedTuple):
    """A chunk that windows were drawn from: its first row, and its encoded columns or how to read
    them.
    """

    start: int
    encoded: Mapping[str, EncodedColumn] | None
    read: Callable[[], Mapping[str, EncodedColumn]] | None

    def columns(self) -> Mapping[str, EncodedColumn]:
        """The encoded columns, read if need be."""
        if self.encoded is not None:
            return self.encoded
        assert self.read is not None  # the table gives one or the other
        return self.read()

    def only(self, first: int, last: int) -> OpenChunk:
        """The rows ``first`` to ``last`` and no others, as far as that can be had without decoding:
        views of columns stored raw.
        """
        columns = self.columns()
        if any(column.encoding != "raw" for column in columns.values()):
            return OpenChunk(self.start, columns, None)
        begin = first - self.start
        stop = last + 1 - self.start
        rows = {name: column.rows(begin, stop) for name, column in columns.items()}
        return OpenChunk(first, rows, None)

    def copy_rows(self, runs: Sequence[Run], outputs: Mapping[str, np.ndarray]) -> None:
        """Decode columns and copy runs of their rows to ``outputs``: ``[places, ...]`` each."""
        columns = self.columns()
        for name, output in outputs.items():
            _copy_rows(columns[name], self.start, runs, output)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The first row, the encoded columns (None when let go), and where to read them again."""

    start: int
    encoded: Mapping[str, EncodedColumn] | None
    encoded_bytes: int
    place: Any


class ChunkTable:
    """Chunks in the order of insertion, dropped oldest first.

    Args:
        hot_bytes: Encoded columns beyond this size are let go, the oldest first; None keeps all.
        cold: Where they can be read again.

    Attributes:
        encoded_bytes: Size of the encoded columns of all chunks.
        hot_bytes: Size of those that are in memory.
        next_ordinal: What the next chunk is called.
    """

    def __init__(self, hot_bytes: int | None, cold: ColdStore | None) -> None:
        self.encoded_bytes = self.hot_bytes = self.next_ordinal = 0
        self._limit = hot_bytes if cold is not None else None
        self._cold = cold
        self._chunks: dict[int, _Chunk] = {}  # those with encoded columns
        # of the chunks from this ordinal on
        self._stops = array("q")
        self._stops_begin = 0
        self._oldest = self._oldest_hot = 0

    def __len__(self) -> int:
        return self.next_ordinal - self._oldest

    @property
    def oldest_stop(self) -> int:
        """The row after the oldest chunk."""
        return self._stops[self._oldest - self._stops_begin]

    def add(self, start: int, stop: int, encoded: Mapping[str, EncodedColumn], place: Any) -> None:
        """Take a chunk; one without a place stays in memory."""
        size = sum(len(column.blob) for column in encoded.values())
        if encoded:
            self._chunks[self.next_ordinal] = _Chunk(start, encoded, size, place)
        self._stops.append(stop)
        self.next_ordinal += 1
        self.encoded_bytes += size
        self.hot_bytes += size
        while self._limit is not None and self.hot_bytes > self._limit and self._let_go_of_oldest():
            pass

    def add_plain(self, stops: npt.NDArray[np.int64]) -> None:
        """Take chunks without encoded columns, by the rows after them."""
        self._stops.frombytes(np.ascontiguousarray(stops, np.int64).tobytes())
        self.next_ordinal += len(stops)

    def drop_before(self, first_row: int) -> None:
        """Forget the chunks all of whose rows are before ``first_row``."""
        while self._oldest < self.next_ordinal and self.oldest_stop <= first_row:
            chunk = self._chunks.pop(self._oldest, None)
            if chunk is not None:
                self.encoded_bytes -= chunk.encoded_bytes
                self.hot_bytes -= chunk.encoded_bytes if chunk.encoded is not None else 0
            self._oldest += 1
        gone = self._oldest - self._stops_begin
        if gone > len(self._stops) // 2:
            del self._stops[:gone]
            self._stops_begin = self._oldest

    def open(self, ordinals: Iterable[int]) -> dict[int, OpenChunk]:
        """Chunks that can be decoded later, whatever is dropped meanwhile."""
        return {ordinal: self._open(self._chunks[ordinal]) for ordinal in ordinals}

    def _open(self, chunk: _Chunk) -> OpenChunk:
        if chunk.encoded is not None:
            return OpenChunk(chunk.start, chunk.encoded, None)
        if self._cold is None:
            raise StateError(
                "a chunk was let go and there is nowhere to read it; give the buffer a cold store"
            )
        return OpenChunk(chunk.start, None, self._cold.open(chunk.place))

    def _let_go_of_oldest(self) -> bool:
        """Drop the encoded columns of the oldest chunk that has them and can be read again; False
        when there is none.
        """
        self._oldest_hot = max(self._oldest_hot, self._oldest)
        while self._oldest_hot < self.next_ordinal:
            ordinal = self._oldest_hot
            chunk = self._chunks.get(self._oldest_hot)
            self._oldest_hot += 1
            if chunk is not None and chunk.place is not None:
                self._chunks[ordinal] = replace(chunk, encoded=None)
                self.hot_bytes -= chunk.encoded_bytes
                return True
        return False


def _copy_rows(
    column: EncodedColumn, first_row: int, runs: Sequence[Run], target: np.ndarray
) -> None:
    """Copy runs of rows out of a chunk; one that is wanted whole and in one piece is decoded to
    where it belongs.
    """
    if runs[0].rows == column.shape[0]:
        whole, *again = runs
        column.decode_into(target[whole.place : whole.place + whole.rows])
        for run in again:
            inside = whole.place + run.row - whole.row
            target[run.place : run.place + run.rows] = target[inside : inside + run.rows]
        return
    source = column.decode()
    for run in runs:
        inside = run.row - first_row
        target[run.place : run.place + run.rows] = source[inside : inside + run.rows]
