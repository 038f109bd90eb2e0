"""The packed columns of a buffer, one entry per chunk: in memory while there is room, else read
again from elsewhere.

A chunk without packed columns takes a few bytes: where it ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worldloom.core.exceptions import StateError
from worldloom.data.codec import PackedColumn
from worldloom.data.windows import ColdStore, OpenChunk

__all__ = ["ChunkTable"]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The first row, the packed columns (None when let go), and where to read them again."""

    start: int
    packed: Mapping[str, PackedColumn] | None
    packed_bytes: int
    place: Any


class ChunkTable:
    """Chunks in the order of insertion, dropped oldest first.

    Args:
        hot_bytes: Packed columns beyond this size are let go, the oldest first; None keeps all.
        cold: Where they can be read again.

    Attributes:
        packed_bytes: Size of the packed columns of all chunks.
        hot_bytes: Size of those that are in memory.
        next_ordinal: What the next chunk is called.
    """

    def __init__(self, hot_bytes: int | None, cold: ColdStore | None) -> None:
        self.packed_bytes = self.hot_bytes = self.next_ordinal = 0
        self._limit = hot_bytes if cold is not None else None
        self._cold = cold
        self._chunks: dict[int, _Chunk] = {}  # those with packed columns
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

    def add(self, start: int, stop: int, packed: Mapping[str, PackedColumn], place: Any) -> None:
        """Take a chunk; one without a place stays in memory."""
        size = sum(len(column.blob) for column in packed.values())
        if packed:
            self._chunks[self.next_ordinal] = _Chunk(start, packed, size, place)
        self._stops.append(stop)
        self.next_ordinal += 1
        self.packed_bytes += size
        self.hot_bytes += size
        while self._limit is not None and self.hot_bytes > self._limit and self._let_go_of_oldest():
            pass

    def drop_before(self, first_row: int) -> None:
        """Forget the chunks all of whose rows are before ``first_row``."""
        while self._oldest < self.next_ordinal and self.oldest_stop <= first_row:
            chunk = self._chunks.pop(self._oldest, None)
            if chunk is not None:
                self.packed_bytes -= chunk.packed_bytes
                self.hot_bytes -= chunk.packed_bytes if chunk.packed is not None else 0
            self._oldest += 1
        gone = self._oldest - self._stops_begin
        if gone > len(self._stops) // 2:
            del self._stops[:gone]
            self._stops_begin = self._oldest

    def open(self, ordinals: Iterable[int]) -> dict[int, OpenChunk]:
        """Chunks that can be decoded later, whatever is dropped meanwhile."""
        return {ordinal: self._open(self._chunks[ordinal]) for ordinal in ordinals}

    def _open(self, chunk: _Chunk) -> OpenChunk:
        if chunk.packed is not None:
            return OpenChunk(chunk.start, chunk.packed, None)
        if self._cold is None:
            raise StateError(
                "a chunk was let go and there is nowhere to read it; give the buffer a cold store"
            )
        return OpenChunk(chunk.start, None, self._cold.open(chunk.place))

    def _let_go_of_oldest(self) -> bool:
        """Drop the packed columns of the oldest chunk that has them and can be read again; False
        when there is none.
        """
        self._oldest_hot = max(self._oldest_hot, self._oldest)
        while self._oldest_hot < self.next_ordinal:
            ordinal = self._oldest_hot
            chunk = self._chunks.get(self._oldest_hot)
            self._oldest_hot += 1
            if chunk is not None and chunk.place is not None:
                self._chunks[ordinal] = replace(chunk, packed=None)
                self.hot_bytes -= chunk.packed_bytes
                return True
        return False
