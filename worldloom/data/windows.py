"""Sampled windows: decoded, and as they are drawn and travel, with columns that are still encoded.

Frames of Atari travel as a hundredth of their bytes when the reader decodes them, which one machine
notices in its memory traffic and several in their network. What was not worth compressing travels
as the stored rows that are wanted, which saves the shard a copy. Between the two, where windows
touch whole chunks that are hardly smaller than what they hold, the shard decodes.

Axis legend: n windows, T rows.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt

from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_table import OpenChunk, Run
from worldloom.data.codec import EncodedColumn

__all__ = ["WORTHWHILE", "EncodedWindows", "SampledWindows"]

Ids = npt.NDArray[np.int64]
DECODERS = min(4, len(os.sched_getaffinity(0)))
PARALLEL_CHUNKS = 8
"""Fewer chunks than this are decoded by the caller's own thread."""
LARGE_BLOB = 32 * 2**10
"""Smaller ones travel joined."""
WORTHWHILE = 0.25
"""Compressed chunks travel when they take at most this share of the decoded windows."""


@dataclass(frozen=True, slots=True)
class SampledWindows:
    """Windows of one buffer, or of several concatenated together.

    Attributes:
        columns: ``[n, T, ...]`` per column; arrays that the caller owns.
        row_ids: ``[n, T]`` int64, unique per row for ever within a shard (a row's number in
            insertion order).
        shard: ``[n]`` int64, which shard each window came from.
        versions: ``[n]`` int64, the update number of the policy that acted the first trained row
            (for staleness).
        inserted_s: ``[n]`` float64 ``time.time()`` at which that row was inserted (for sample age).
    """

    columns: Rows
    row_ids: Ids
    shard: Ids
    versions: Ids
    inserted_s: npt.NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in self.columns.values())

    def part(self, first: int, last: int) -> SampledWindows:
        """The windows from ``first`` up to ``last``, without a copy."""
        columns = {name: column[first:last] for name, column in self.columns.items()}
        return SampledWindows(
            columns,
            self.row_ids[first:last],
            self.shard[first:last],
            self.versions[first:last],
            self.inserted_s[first:last],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SampledWindows]) -> SampledWindows:
        """The windows of several parts, in the given order."""
        if len(parts) == 1:
            return parts[0]
        columns = {
            name: np.concatenate([part.columns[name] for part in parts])
            for name in parts[0].columns
        }
        return cls(
            columns,
            np.concatenate([part.row_ids for part in parts]),
            np.concatenate([part.shard for part in parts]),
            np.concatenate([part.versions for part in parts]),
            np.concatenate([part.inserted_s for part in parts]),
        )


class Sizes(NamedTuple):
    """Chunks that are still to be read, and the bytes of the others by what has to be done with
    them.
    """

    unread: int
    raw: int
    compressed: int


def _no_chunks() -> Ids:
    return np.empty(0, np.int64)


@dataclass(slots=True)
class EncodedWindows:
    """Windows as they are drawn: some columns may still have to be decoded. They need their buffer
    no more, nor its disk once they were :meth:`fetched`.

    Attributes:
        plain: The windows without the encoded columns.
        chunks: The chunks that hold the encoded columns, by number.
        chunk_of: ``[n, T]`` int64, the number of each row's chunk; empty when nothing is encoded.
        encoded: What each encoded column decodes to.
    """

    plain: SampledWindows
    chunks: Mapping[int, OpenChunk] = field(default_factory=dict)
    chunk_of: Ids = field(default_factory=_no_chunks)
    encoded: Mapping[str, ArraySpec] = field(default_factory=dict)
    _known_sizes: Sizes | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Few large buffers instead of some objects per chunk: pickling those would take longer
        than decoding them.
        """
        buffer = PickleBuffer if int(protocol) >= 5 else bytes
        small: list[bytes | memoryview] = []

        def sent(blob: bytes | memoryview) -> Any:
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
                    (sent(c.blob), c.encoding, c.shape[0])
                    for c in map(chunk.columns().__getitem__, self.encoded)
                ],
            )
            for number, chunk in self.chunks.items()
        ]
        plain = self.plain
        arrays = (plain.columns, plain.row_ids, plain.shard, plain.versions, plain.inserted_s)
        return _receive, (
            arrays,
            chunks,
            buffer(b"".join(small)),
            self.chunk_of,
            dict(self.encoded),
        )

    @property
    def num_windows(self) -> int:
        """How many were drawn."""
        return len(self.plain.row_ids)

    @property
    def is_whole(self) -> bool:
        """True if nothing is left to decode."""
        return not self.encoded

    @property
    def is_in_memory(self) -> bool:
        """False if some chunks are still to be read from disk."""
        return not self._sizes.unread

    @property
    def nbytes(self) -> int:
        """Bytes of columns that travel: the plain ones and those of all chunks that the windows
        touch; chunks that are still to be read count nothing.
        """
        return self.plain.nbytes + self._sizes.raw + self._sizes.compressed

    @property
    def decoded_bytes(self) -> int:
        """Size of all columns of the whole windows."""
        row_bytes = sum(spec.nbytes for spec in self.encoded.values())
        return self.plain.nbytes + self.plain.row_ids.size * row_bytes

    @property
    def should_travel(self) -> bool:
        """True if they should be sent to another process as they are, and decoded there."""
        return not self.is_whole and self._sizes.compressed <= WORTHWHILE * self.decoded_bytes

    def ready(self) -> EncodedWindows | None:
        """As :meth:`prepared` if that takes no time; None if something has to be read or
        decoded.
        """
        if self.is_whole:
            return self
        return self.fetched() if self.is_in_memory and self.should_travel else None

    def prepared(self) -> EncodedWindows:
        """What another process should be sent: what is cheaper to send as it is stored is left to
        the reader to decode.
        """
        drawn = self.fetched()
        return drawn if drawn.should_travel else EncodedWindows(drawn.decode())

    def fetched(self) -> EncodedWindows:
        """The same with every chunk in memory, and no more of it than is wanted, so that it can be
        sent to another process.
        """
        if self.is_in_memory and not self._sizes.raw:
            return self
        ids = self.plain.row_ids.reshape(-1)
        numbers_of = self.chunk_of.reshape(-1)
        order = np.argsort(numbers_of, kind="stable")
        numbers, firsts = np.unique(numbers_of[order], return_index=True)
        spans = zip(
            *(pick.reduceat(ids[order], firsts).tolist() for pick in (np.minimum, np.maximum)),
            strict=True,
        )
        chunks = {
            n: self.chunks[n].only(*span) for n, span in zip(numbers.tolist(), spans, strict=True)
        }
        return EncodedWindows(self.plain, chunks, self.chunk_of, self.encoded)

    def part(self, first: int, last: int) -> EncodedWindows:
        """The windows from ``first`` up to ``last``, without a copy."""
        return EncodedWindows(
            self.plain.part(first, last), self.chunks, self.chunk_of[first:last], self.encoded
        )

    @classmethod
    def concatenate(cls, parts: Sequence[EncodedWindows]) -> EncodedWindows:
        """The windows of several buffers with equal columns, in the given order. Nothing is decoded
        unless some parts came decoded and others did not.
        """
        if len(parts) == 1:
            return parts[0]
        if any(part.encoded.keys() != parts[0].encoded.keys() for part in parts):
            return cls(SampledWindows.concatenate([part.decode() for part in parts]))
        chunks: dict[int, OpenChunk] = {}
        numbers = []
        next_number = 0
        for part in parts:  # each numbers its chunks on its own
            chunks.update((next_number + number, chunk) for number, chunk in part.chunks.items())
            numbers.append(part.chunk_of + next_number)
            next_number += max(part.chunks, default=-1) + 1
        plain = SampledWindows.concatenate([part.plain for part in parts])
        return cls(plain, chunks, np.concatenate(numbers), parts[0].encoded)

    def decode(self) -> SampledWindows:
        """The whole windows: chunk by chunk, with the help of a few threads. A column is written to
        its place in them once, whatever number of buffers the windows came from.
        """
        if self.is_whole:
            return self.plain
        shape = self.chunk_of.shape
        decoded = {
            name: np.empty((*shape, *spec.shape), spec.dtype) for name, spec in self.encoded.items()
        }
        # views
        outputs = {
            name: array.reshape(-1, *self.encoded[name].shape) for name, array in decoded.items()
        }

        def decode(part: tuple[int, list[Run]]) -> None:
            """Copy the rows that were drawn from one chunk."""
            self.chunks[part[0]].copy_rows(part[1], outputs)

        plain = self.plain
        parts = list(_runs(plain.row_ids.reshape(-1), self.chunk_of.reshape(-1)).items())
        helpers = DECODERS - 1 if len(parts) >= PARALLEL_CHUNKS else 0
        portions = [parts[first :: helpers + 1] for first in range(helpers + 1)]
        given = [
            _pool().submit(lambda portion: deque(map(decode, portion), 0), portion)
            for portion in portions[1:]
        ]
        deque(map(decode, portions[0]), 0)
        for portion in given:
            portion.result()
        columns = {**plain.columns, **decoded}
        return SampledWindows(columns, plain.row_ids, plain.shard, plain.versions, plain.inserted_s)

    @property
    def _sizes(self) -> Sizes:
        if self._known_sizes is None:
            unread = 0
            raw = 0
            compressed = 0
            for chunk in self.chunks.values():
                unread += chunk.encoded is None
                for column in (chunk.encoded or {}).values():
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
    chunk_of: Ids,
    encoded: Mapping[str, ArraySpec],
) -> EncodedWindows:
    """Windows as they were pickled; blobs are views of what was received."""
    opened = {}
    joined = memoryview(small)
    begin = 0
    for number, start, columns in chunks:
        found = {}
        for (name, spec), (blob, encoding, rows) in zip(encoded.items(), columns, strict=True):
            if isinstance(blob, int):
                view = joined[begin : begin + blob]
                begin = begin + blob
            else:
                view = memoryview(blob)
            found[name] = EncodedColumn(view, encoding, spec.dtype, (rows, *spec.shape))
        opened[number] = OpenChunk(start, found, None)
    return EncodedWindows(SampledWindows(*plain), opened, chunk_of, encoded)


def _runs(ids: Ids, numbers: Ids) -> dict[int, list[Run]]:
    """Where the rows of each chunk go: row ``ids[i]`` of chunk ``numbers[i]`` to place ``i``."""
    order = np.argsort(numbers, kind="stable")
    ids = ids[order]
    numbers = numbers[order]
    breaks = (np.diff(numbers) != 0) | (np.diff(ids) != 1) | (np.diff(order) != 1)
    begins = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    counts = np.diff(begins, append=len(order))
    found: dict[int, list[Run]] = {}
    for number, *run in zip(
        *(values.tolist() for values in (numbers[begins], order[begins], ids[begins], counts)),
        strict=True,
    ):
        found.setdefault(number, []).append(Run(*run))
    return found


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One for the process; decompression lets go of the interpreter."""
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
