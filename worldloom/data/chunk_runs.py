"""Many chunks at once: payloads of one file whose columns all lie there as they are, so that a
buffer takes thousands of them with a few copies (``SequenceBuffer.append_run``).

A payload that is compressed, carries notes, or is in any way unlike what ``encode_rows`` writes for
these columns is in no run: it goes through ``split_rows``, which says what is wrong with it.

n chunks, R rows of all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng as zlib

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import MAGIC, PREFIX, notes_of, split_rows

__all__ = ["ChunkRun", "PlainChunk", "PlainLayout", "PlainLayouts"]

Ids = npt.NDArray[np.int64]
MOST_LAYOUTS = 4096
"""Headers that are remembered: chunks of up to as many lengths."""
BLOCK_BYTES = 512 * 2**10
"""Of payloads that are copied column by column, while they are in the processor's cache."""


class PlainLayout(NamedTuple):
    """Where in a payload its columns lie.

    Attributes:
        rows: How many it has.
        size: Bytes of the whole payload.
        columns: Per column the offset of its first byte, and its spec.
        flags: Where ``is_first`` begins, a byte per row.
    """

    rows: int
    size: int
    columns: Mapping[str, tuple[int, ArraySpec]]
    flags: int


class PlainLayouts:
    """The layouts of payloads, by their headers, each of which is looked into once.

    Args:
        columns: What every row has.
    """

    def __init__(self, columns: Mapping[str, ArraySpec]) -> None:
        self._columns = columns
        self._known: dict[bytes, PlainLayout | None] = {}

    def layout_of(self, data: bytes | bytearray, start: int, stop: int) -> PlainLayout | None:
        """The layout of the payload in [start, stop) of ``data``; None if it is no plain one, or
        damaged.
        """
        if stop - start < PREFIX.size:
            return None
        magic, checksum, head_size = PREFIX.unpack_from(data, start)
        begin = start + PREFIX.size
        head = bytes(data[begin : min(begin + head_size, stop)])
        if head not in self._known:
            if len(self._known) >= MOST_LAYOUTS:
                self._known.clear()
            self._known[head] = self._learn(memoryview(data)[start:stop])
        layout = self._known[head]
        if layout is None or layout.size != stop - start or magic != MAGIC:
            return None
        if zlib.crc32(memoryview(data)[start + 8 : stop]) != checksum:
            return None
        return layout

    def _learn(self, payload: memoryview) -> PlainLayout | None:
        try:
            found = split_rows(payload, self._columns)
            notes = notes_of(payload)
        except (CheckpointError, ShapeMismatchError):
            return None
        offset = len(payload) - sum(len(column.blob) for column in found.values())
        _, _, head_size = PREFIX.unpack_from(payload)
        if notes or offset != PREFIX.size + head_size:
            return None
        columns = {}
        for name, column in found.items():
            size = column.decoded_bytes
            if column.encoding != "raw" or len(column.blob) != size or not size:
                return None
            columns[name] = (offset, self._columns[name])
            offset += size
        rows = next(iter(found.values())).shape[0]
        return PlainLayout(rows, offset, columns, columns["is_first"][0])


class PlainChunk(NamedTuple):
    """A chunk whose payload is plain.

    Attributes:
        stream, seq, version, agent_steps: As in ``core.sequence.Chunk``; the number of the update
            alone.
        first_row: Rows that were inserted before it.
        inserted_s: ``time.time()`` of the insertion.
        layout, start: Of its payload, and where that begins.
    """

    stream: StreamId
    seq: int
    version: int
    agent_steps: int
    first_row: int
    inserted_s: float
    layout: PlainLayout
    start: int


class ChunkRun:
    """Consecutive chunks, each of which is the next one of its stream.

    Args:
        data: Where their payloads lie.

    Attributes:
        chunks: In their order.
        rows: Of all chunks.
        next_seqs: The number of the next chunk, for every stream of the run.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.chunks: list[PlainChunk] = []
        self.next_seqs: dict[StreamId, int] = {}
        self.rows = 0

    def __len__(self) -> int:
        return len(self.chunks)

    def add(self, chunk: PlainChunk) -> None:
        """The next one."""
        self.chunks.append(chunk)
        self.next_seqs[chunk.stream] = chunk.seq + 1
        self.rows += chunk.layout.rows

    @property
    def lengths(self) -> Ids:
        """Rows of each chunk: [n]."""
        return np.array([chunk.layout.rows for chunk in self.chunks], np.int64)

    def blocks(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Parts of the run in its order: how many chunks, and per column their rows,
        ``[chunks, rows, ...]`` where they are alike and ``[all rows, ...]`` otherwise.
        """
        first = 0
        while first < len(self):
            stop = first + 1
            size = self.chunks[first].layout.size
            while stop < len(self):
                size += self.chunks[stop].layout.size
                if size > BLOCK_BYTES:
                    break
                stop += 1
            block = self.chunks[first:stop]
            steps = {after.start - before.start for before, after in itertools.pairwise(block)}
            is_even = len(steps) <= 1 and all(chunk.layout is block[0].layout for chunk in block)
            yield len(block), self._views(block, *steps) if is_even else self._joined(block)
            first = stop

    def _views(self, block: Sequence[PlainChunk], step: int = 0) -> dict[str, np.ndarray]:
        """The columns of chunks that are alike, where they lie."""
        layout = block[0].layout
        views = {}
        for name, (offset, spec) in layout.columns.items():
            inner = np.empty((1, *spec.shape), spec.dtype).strides
            views[name] = np.ndarray(
                (len(block), layout.rows, *spec.shape),
                spec.dtype,
                self._data,
                block[0].start + offset,
                (step, *inner),
            )
        return views

    def _joined(self, block: Sequence[PlainChunk]) -> dict[str, np.ndarray]:
        """The columns of chunks, copied."""
        view = memoryview(self._data)
        joined = {}
        for name, (_, spec) in block[0].layout.columns.items():
            parts = []
            for chunk in block:
                begin = chunk.start + chunk.layout.columns[name][0]
                parts.append(view[begin : begin + chunk.layout.rows * spec.nbytes])
            joined[name] = np.frombuffer(b"".join(parts), spec.dtype).reshape(-1, *spec.shape)
        return joined
