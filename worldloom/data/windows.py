"""Sampled windows: whole, or drawn with the decoding still to do. Axis legend: n windows, T rows."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any, NamedTuple, Protocol, SupportsIndex

import numpy as np
import numpy.typing as npt

from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import PackedColumn

__all__ = ["ColdStore", "OpenChunk", "PendingWindows", "Windows"]

Ids = npt.NDArray[np.int64]
DECODERS = min(4, len(os.sched_getaffinity(0)))
PARALLEL_CHUNKS = 8
"""Fewer chunks than this are decoded by the caller's own thread."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Sampled windows.

    Attributes:
        columns: ``[n, T, ...]`` per column; fresh arrays that the caller owns.
        row_ids: ``[n, T]`` int64.
        versions: ``[n]`` int64, policy update number of each window's first trained row.
        inserted_s: ``[n]`` float64, insertion time of that row.
    """

    columns: Rows
    row_ids: Ids
    versions: Ids
    inserted_s: npt.NDArray[np.float64]


class OpenChunk(NamedTuple):
    """A chunk that windows were drawn from: its first row, and its packed columns or how to read them."""

    start: int
    packed: Mapping[str, PackedColumn] | None
    read: Callable[[], Mapping[str, PackedColumn]] | None

    def columns(self) -> Mapping[str, PackedColumn]:
        """The packed columns, read if need be."""
        if self.packed is not None:
            return self.packed
        assert self.read is not None  # the buffer gives one or the other
        return self.read()


class ColdStore(Protocol):
    """Where packed columns that a buffer let go of can be read again."""

    def open(self, place: Any) -> Callable[[], Mapping[str, PackedColumn]]:
        """Called under the buffer's lock; the result is called without it, and works whatever was evicted meanwhile."""


@dataclass(slots=True)
class PendingWindows:
    """Drawn windows whose packed columns are still to be decoded; needs the buffer no more."""

    _windows: Windows
    _chunks: Mapping[int, OpenChunk]
    _ordinals: Ids
    _packed: Mapping[str, ArraySpec]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Few large buffers instead of some objects per chunk: pickling those would take longer than decoding them."""
        chunks = [(number, chunk.start, chunk.columns()) for number, chunk in self._chunks.items()]
        buffer = PickleBuffer if int(protocol) >= 5 else bytes
        packed = {name: (spec, *_glue([columns[name] for *_, columns in chunks], buffer)) for name, spec in self._packed.items()}
        windows = self._windows
        plain = (windows.columns, windows.row_ids, windows.versions, windows.inserted_s)
        return _receive, (plain, [chunk[:2] for chunk in chunks], self._ordinals, packed)

    @property
    def packed_bytes(self) -> int:
        """Size of the plain columns and of all chunks that the windows touch; those still to be read count nothing."""
        plain = sum(column.nbytes for column in self._windows.columns.values())
        return plain + sum(len(column.blob) for chunk in self._chunks.values() for column in (chunk.packed or {}).values())

    @property
    def decoded_bytes(self) -> int:
        """Size of all columns of the whole windows."""
        plain = sum(column.nbytes for column in self._windows.columns.values())
        return plain + self._ordinals.size * sum(spec.nbytes for spec in self._packed.values())

    def fetched(self) -> PendingWindows:
        """The same with every chunk in memory, so that it can be sent to another process."""
        chunks = {number: OpenChunk(chunk.start, chunk.columns(), None) for number, chunk in self._chunks.items()}
        return PendingWindows(self._windows, chunks, self._ordinals, self._packed)

    def finish(self) -> Windows:
        """Decode what is packed, chunk by chunk with the help of a few threads, and return the whole windows."""
        if not self._packed:
            return self._windows
        shape = self._ordinals.shape
        outputs = {name: np.empty((self._ordinals.size, *spec.shape), spec.dtype) for name, spec in self._packed.items()}
        flat_ids, flat_ordinals = self._windows.row_ids.reshape(-1), self._ordinals.reshape(-1)
        order = np.argsort(flat_ordinals, kind="stable")
        cuts = np.flatnonzero(np.diff(flat_ordinals[order])) + 1

        def decode(places: Ids) -> None:
            """Decode one chunk and copy the rows that were drawn from it."""
            chunk = self._chunks[int(flat_ordinals[places[0]])]
            inside, packed = flat_ids[places] - chunk.start, chunk.columns()
            for name, output in outputs.items():
                _copy(packed[name].unpack(), inside, output, places)

        parts = np.split(order, cuts)
        helpers = DECODERS - 1 if len(parts) >= PARALLEL_CHUNKS else 0
        shares = [parts[first :: helpers + 1] for first in range(helpers + 1)]
        given = [_pool().submit(lambda share: deque(map(decode, share), 0), share) for share in shares[1:]]
        deque(map(decode, shares[0]), 0)
        for share in given:
            share.result()
        self._windows.columns.update({name: output.reshape(*shape, *output.shape[1:]) for name, output in outputs.items()})
        return self._windows


def _glue(columns: Sequence[PackedColumn], buffer: Callable[[bytes], Any]) -> tuple[Any, list[tuple[int, str, int]]]:
    """The blobs of one column in a row, and of each its size, encoding and number of rows."""
    return buffer(b"".join(column.blob for column in columns)), [(len(c.blob), c.encoding, c.shape[0]) for c in columns]


def _receive(plain: tuple[Any, ...], places: Sequence[tuple[int, int]], ordinals: Ids, packed: Mapping[str, Any]) -> PendingWindows:
    """Windows as they were pickled; blobs are views of what was received."""
    found: dict[int, dict[str, PackedColumn]] = {number: {} for number, _ in places}
    for name, (spec, glued, entries) in packed.items():
        view, offset = memoryview(glued), 0
        for columns, (size, encoding, rows) in zip(found.values(), entries, strict=True):
            columns[name] = PackedColumn(view[offset : offset + size], encoding, spec.dtype, (rows, *spec.shape))
            offset += size
    chunks = {number: OpenChunk(start, found[number], None) for number, start in places}
    return PendingWindows(Windows(*plain), chunks, ordinals, {name: spec for name, (spec, *_) in packed.items()})


def _copy(source: np.ndarray, inside: Ids, target: np.ndarray, places: Ids) -> None:
    """``target[places] = source[inside]``, run by run of consecutive rows, which copies once instead of twice."""
    cuts = np.flatnonzero((np.diff(inside) != 1) | (np.diff(places) != 1)) + 1
    for begin, end in itertools.pairwise([0, *cuts.tolist(), len(inside)]):
        count = end - begin
        target[places[begin] : places[begin] + count] = source[inside[begin] : inside[begin] + count]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One for the process; decompression lets go of the interpreter."""
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
