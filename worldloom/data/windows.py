"""Sampled windows: whole, or drawn with the decoding still to do. Axis legend: n windows,
T rows.
"""

from __future__ import annotations

import functools
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
LARGE_BLOB = 32 * 2**10
"""Smaller ones travel joined."""


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

    def part(self, first: int, last: int) -> Windows:
        """The windows from ``first`` up to ``last``, without a copy."""
        columns = {name: column[first:last] for name, column in self.columns.items()}
        return Windows(
            columns,
            self.row_ids[first:last],
            self.versions[first:last],
            self.inserted_s[first:last],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Windows]) -> Windows:
        """Several, in the given order."""
        columns = {
            name: np.concatenate([part.columns[name] for part in parts])
            for name in parts[0].columns
        }
        ids, versions, inserted_s = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("row_ids", "versions", "inserted_s")
        )
        return cls(columns, ids, versions, inserted_s)


class OpenChunk(NamedTuple):
    """A chunk that windows were drawn from: its first row, and its packed columns or how to read
    them.
    """

    start: int
    packed: Mapping[str, PackedColumn] | None
    read: Callable[[], Mapping[str, PackedColumn]] | None

    def columns(self) -> Mapping[str, PackedColumn]:
        """The packed columns, read if need be."""
        if self.packed is not None:
            return self.packed
        assert self.read is not None  # the buffer gives one or the other
        return self.read()

    def only(self, first: int, last: int) -> OpenChunk:
        """The rows ``first`` to ``last`` and no others, as far as that can be had without decoding:
        views of columns stored raw.
        """
        columns = self.columns()
        if any(column.encoding != "raw" for column in columns.values()):
            return OpenChunk(self.start, columns, None)
        return OpenChunk(
            first,
            {
                name: c.rows(first - self.start, last + 1 - self.start)
                for name, c in columns.items()
            },
            None,
        )


class Sizes(NamedTuple):
    """Chunks that are still to be read, and the bytes of the others by what has to be done with
    them.
    """

    unread: int
    raw: int
    compressed: int


class ColdStore(Protocol):
    """Where packed columns that a buffer let go of can be read again."""

    def open(self, place: Any) -> Callable[[], Mapping[str, PackedColumn]]:
        """Called under the buffer's lock; the result is called without it, and works whatever was
        evicted meanwhile.
        """


@dataclass(slots=True)
class PendingWindows:
    """Drawn windows whose packed columns are still to be decoded; needs the buffer no more."""

    _windows: Windows
    _chunks: Mapping[int, OpenChunk]
    _ordinals: Ids
    _packed: Mapping[str, ArraySpec]
    _known_sizes: Sizes | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Few large buffers instead of some objects per chunk: pickling those would take longer
        than decoding them.
        """
        buffer = PickleBuffer if int(protocol) >= 5 else bytes
        small: list[bytes | memoryview] = []

        def packed(blob: bytes | memoryview) -> Any:
            """Large ones go by themselves; small ones are joined, and only their sizes
            stand here.
            """
            if len(blob) >= LARGE_BLOB:
                return buffer(blob)
            small.append(blob)
            return len(blob)

        chunks = [
            (
                number,
                chunk.start,
                [
                    (packed(c.blob), c.encoding, c.shape[0])
                    for c in map(chunk.columns().__getitem__, self._packed)
                ],
            )
            for number, chunk in self._chunks.items()
        ]
        windows = self._windows
        plain = (windows.columns, windows.row_ids, windows.versions, windows.inserted_s)
        return _receive, (
            plain,
            chunks,
            buffer(b"".join(small)),
            self._ordinals,
            dict(self._packed),
        )

    @property
    def num_windows(self) -> int:
        """How many were drawn."""
        return len(self._ordinals)

    @property
    def is_whole(self) -> bool:
        """True if nothing is left to decode."""
        return not self._packed

    @property
    def is_in_memory(self) -> bool:
        """False if some chunks are still to be read from disk."""
        return not self._sizes.unread

    @property
    def packed_bytes(self) -> int:
        """Size of the plain columns and of all chunks that the windows touch; those still to be
        read count nothing.
        """
        plain = sum(column.nbytes for column in self._windows.columns.values())
        return plain + self._sizes.raw + self._sizes.compressed

    @property
    def compressed_bytes(self) -> int:
        """Part of :attr:`packed_bytes` that someone has to decompress."""
        return self._sizes.compressed

    @property
    def decoded_bytes(self) -> int:
        """Size of all columns of the whole windows."""
        plain = sum(column.nbytes for column in self._windows.columns.values())
        return plain + self._ordinals.size * sum(spec.nbytes for spec in self._packed.values())

    def fetched(self) -> PendingWindows:
        """The same with every chunk in memory, and no more of it than is wanted, so that it can be
        sent to another process.
        """
        if self.is_in_memory and not self._sizes.raw:
            return self
        ids = self._windows.row_ids.reshape(-1)
        ordinals = self._ordinals.reshape(-1)
        order = np.argsort(ordinals, kind="stable")
        numbers, firsts = np.unique(ordinals[order], return_index=True)
        spans = zip(
            *(pick.reduceat(ids[order], firsts).tolist() for pick in (np.minimum, np.maximum)),
            strict=True,
        )
        chunks = {
            n: self._chunks[n].only(*span) for n, span in zip(numbers.tolist(), spans, strict=True)
        }
        return PendingWindows(self._windows, chunks, self._ordinals, self._packed)

    def part(self, first: int, last: int) -> PendingWindows:
        """The windows from ``first`` up to ``last``, without a copy."""
        return PendingWindows(
            self._windows.part(first, last), self._chunks, self._ordinals[first:last], self._packed
        )

    @classmethod
    def concatenate(cls, parts: Sequence[PendingWindows]) -> PendingWindows:
        """The windows of several buffers with equal columns, in the given order."""
        if len(parts) == 1:
            return parts[0]
        chunks: dict[int, OpenChunk] = {}
        ordinals = []
        next_number = 0
        for part in parts:  # each numbers its chunks again
            chunks.update((next_number + number, chunk) for number, chunk in part._chunks.items())
            ordinals.append(part._ordinals + next_number)
            next_number += max(part._chunks, default=-1) + 1
        return cls(
            Windows.concatenate([part._windows for part in parts]),
            chunks,
            np.concatenate(ordinals),
            parts[0]._packed,
        )

    def finish(self) -> Windows:
        """Decode what is packed, chunk by chunk with the help of a few threads, and return the
        whole windows.
        """
        if self.is_whole:
            return self._windows
        shape = self._ordinals.shape
        room = {
            name: np.empty((*shape, *spec.shape), spec.dtype) for name, spec in self._packed.items()
        }
        # views
        outputs = {
            name: array.reshape(-1, *self._packed[name].shape) for name, array in room.items()
        }

        def decode(part: tuple[int, list[Run]]) -> None:
            """Decode one chunk and copy the rows that were drawn from it."""
            chunk = self._chunks[part[0]]
            runs = part[1]
            packed = chunk.columns()
            for name, output in outputs.items():
                _decode(packed[name], chunk.start, runs, output)

        parts = list(_runs(self._windows.row_ids.reshape(-1), self._ordinals.reshape(-1)).items())
        helpers = DECODERS - 1 if len(parts) >= PARALLEL_CHUNKS else 0
        shares = [parts[first :: helpers + 1] for first in range(helpers + 1)]
        given = [
            _pool().submit(lambda share: deque(map(decode, share), 0), share)
            for share in shares[1:]
        ]
        deque(map(decode, shares[0]), 0)
        for share in given:
            share.result()
        self._windows.columns.update(room)
        return self._windows

    @property
    def _sizes(self) -> Sizes:
        if self._known_sizes is None:
            unread = raw = compressed = 0
            for chunk in self._chunks.values():
                unread += chunk.packed is None
                for column in (chunk.packed or {}).values():
                    if column.encoding == "raw":
                        raw += len(column.blob)
                    else:
                        compressed += len(column.blob)
            self._known_sizes = Sizes(unread, raw, compressed)
        return self._known_sizes


def _receive(
    plain: tuple[Any, ...],
    chunks: Sequence[tuple[int, int, Sequence[Any]]],
    small: Any,
    ordinals: Ids,
    packed: Mapping[str, ArraySpec],
) -> PendingWindows:
    """Windows as they were pickled; blobs are views of what was received."""
    opened = {}
    joined = memoryview(small)
    begin = 0
    for number, start, columns in chunks:
        found = {}
        for (name, spec), (blob, encoding, rows) in zip(packed.items(), columns, strict=True):
            if isinstance(blob, int):
                view = joined[begin : begin + blob]
                begin = begin + blob
            else:
                view = memoryview(blob)
            found[name] = PackedColumn(view, encoding, spec.dtype, (rows, *spec.shape))
        opened[number] = OpenChunk(start, found, None)
    return PendingWindows(Windows(*plain), opened, ordinals, packed)


class Run(NamedTuple):
    """Consecutive rows of one chunk that are neighbours in the output, too."""

    place: int
    row: int
    rows: int


def _runs(ids: Ids, ordinals: Ids) -> dict[int, list[Run]]:
    """Where the rows of each chunk go: row ``ids[i]`` of chunk ``ordinals[i]`` to place ``i``."""
    order = np.argsort(ordinals, kind="stable")
    ids = ids[order]
    ordinals = ordinals[order]
    breaks = (np.diff(ordinals) != 0) | (np.diff(ids) != 1) | (np.diff(order) != 1)
    begins = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    counts = np.diff(begins, append=len(order))
    found: dict[int, list[Run]] = {}
    for ordinal, *run in zip(
        *(values.tolist() for values in (ordinals[begins], order[begins], ids[begins], counts)),
        strict=True,
    ):
        found.setdefault(ordinal, []).append(Run(*run))
    return found


def _decode(column: PackedColumn, first_row: int, runs: Sequence[Run], target: np.ndarray) -> None:
    """Copy runs of rows out of a chunk; one that is wanted whole and in one piece is decoded to
    where it belongs.
    """
    if runs[0].rows == column.shape[0]:
        whole, *again = runs
        column.unpack_into(target[whole.place : whole.place + whole.rows])
        for run in again:
            inside = whole.place + run.row - whole.row
            target[run.place : run.place + run.rows] = target[inside : inside + run.rows]
        return
    source = column.unpack()
    for run in runs:
        inside = run.row - first_row
        target[run.place : run.place + run.rows] = source[inside : inside + run.rows]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One for the process; decompression lets go of the interpreter."""
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
