"""Rows as bytes: how a chunk travels, how a journal stores it, and how a buffer keeps images small
in memory.

Layout, little endian: magic ``WLC1``, crc32 of everything after it, header length, JSON header, one
blob per column. The header names every column with dtype, shape, encoding and size, and the rows
that are marked, if any are, so any program can read a payload; nothing is ever unpickled.

Which column is compressed was measured on 64-row chunks (``benchmarks/replay.py``): zstd level 1
shrinks frames of Pong more than two hundredfold at more than 1 GB/s, while it takes 7 % off 24
random float32 and makes three observations of a pendulum larger. So uint8 columns of 1 KiB or more
are compressed, and kept so only if that saves a tenth; everything else is stored as it is. lz4
leaves images three to six times larger and decodes them no faster (``docs/adr/006-one-codec.md``).
"""

from __future__ import annotations

import functools
import json
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import zstandard
from zlib_ng import zlib_ng as zlib

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.json_text import parse_json
from worldloom.core.sequence import Chunk, PolicyVersion, Rows, StreamId, agent_steps
from worldloom.core.specs import ArraySpec

__all__ = [
    "EncodedColumn",
    "carry_resets_of",
    "decode_rows",
    "encode_rows",
    "make_chunk",
    "notes_of",
    "split_rows",
]

MAGIC = b"WLC1"
PREFIX = struct.Struct("<4sII")
MIN_COMPRESSED_BYTES = 1024
WORTHWHILE = 0.9
CARRY_RESETS = "carry_resets"
LARGEST_WINDOW_BYTES = 8 << 20
"""Of frames of others that are kept: a reader may have to allocate as much."""
DEFAULT_LEVEL = 1

_local = threading.local()


class EncodedColumn(NamedTuple):
    """One encoded column: ``blob`` decodes to an array of ``shape`` (rows first) and ``dtype``;
    ``encoding`` is raw or zstd.

    The blob may be a view into a larger payload; who keeps the column for long keeps :meth:`owned`
    instead.
    """

    blob: bytes | memoryview
    encoding: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def raw(cls, array: np.ndarray) -> EncodedColumn:
        """An array as it is, copied."""
        return cls(array.tobytes(), "raw", array.dtype.name, array.shape)

    @classmethod
    def of_frame(cls, frame: bytes, array: np.ndarray) -> EncodedColumn | None:
        """An array with the zstd frame that it was decoded from; None where this module would not
        have compressed it, or not so.
        """
        is_compressed = array.dtype == np.uint8 and array.nbytes >= MIN_COMPRESSED_BYTES
        if not is_compressed or len(frame) >= WORTHWHILE * array.nbytes:
            return None
        if zstandard.get_frame_parameters(frame).window_size > LARGEST_WINDOW_BYTES:
            return None
        return cls(frame, "zstd", array.dtype.name, array.shape)

    @property
    def decoded_bytes(self) -> int:
        """Size of the decoded array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def owned(self) -> EncodedColumn:
        """The same with a blob of its own, that keeps no payload alive and can be pickled."""
        return self if isinstance(self.blob, bytes) else self._replace(blob=bytes(self.blob))

    def rows(self, first: int, stop: int) -> EncodedColumn:
        """Some rows of a raw column, as a view."""
        size = self.decoded_bytes // self.shape[0]
        return self._replace(
            blob=memoryview(self.blob)[first * size : stop * size],
            shape=(stop - first, *self.shape[1:]),
        )

    def decode(self) -> np.ndarray:
        """The array, read-only.

        Raises:
            CheckpointError: If the blob does not decode to exactly the promised bytes.
        """
        data = self.blob
        if self.encoding == "zstd":
            try:
                data = _decompressor().decompress(self.blob, max_output_size=self.decoded_bytes)
            except (zstandard.ZstdError, MemoryError) as error:
                raise CheckpointError(
                    f"rows: a compressed column does not decode ({error})"
                ) from error
        if len(data) != self.decoded_bytes:
            raise CheckpointError(
                f"rows: a column decodes to {len(data)} bytes instead of {self.decoded_bytes}"
            )
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def decode_into(self, target: np.ndarray) -> None:
        """As :meth:`decode`, to a contiguous array of the same shape and dtype, without a copy on
        the way.

        Raises:
            CheckpointError: If the blob does not decode to exactly the promised bytes; what
                ``target`` holds then is undefined.
        """
        if self.encoding != "zstd":
            target[...] = self.decode()
            return
        reader = _decompressor().stream_reader(self.blob)
        try:
            size = reader.readinto(target.reshape(-1).view(np.uint8).data)
            more = len(reader.read(1))
        except zstandard.ZstdError as error:
            raise CheckpointError(f"rows: a compressed column does not decode ({error})") from error
        if size != self.decoded_bytes or more:
            raise CheckpointError(
                f"rows: a column decodes to {size + more} bytes instead of {self.decoded_bytes}"
            )


def encode_rows(
    rows: Mapping[str, np.ndarray | EncodedColumn],
    *,
    level: int = DEFAULT_LEVEL,
    carry_resets: Sequence[int] = (),
    notes: Mapping[str, Any] | None = None,
) -> bytes:
    """Encode columns that share a leading time axis.

    Args:
        rows: Per column ``[rows, ...]``, or what it is encoded as already; all with the same
            number of rows.
        level: zstd level for the columns that are compressed.
        carry_resets: Rows to mark, see :func:`carry_resets_of`.
        notes: What else the header says of the rows, JSON-ready, see :func:`notes_of`.

    Returns:
        The payload; equal rows give equal bytes.

    Raises:
        ShapeMismatchError: If the columns differ in length.
    """
    lengths = {name: column.shape[0] for name, column in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ShapeMismatchError("rows to encode", "columns of one length", lengths)
    encoded = {
        name: column
        if isinstance(column, EncodedColumn)
        else _encode(np.ascontiguousarray(column), level)
        for name, column in rows.items()
    }
    entries: list[Any] = [
        [name, c.dtype, list(c.shape), c.encoding, len(c.blob)] for name, c in encoded.items()
    ]
    entries += [{CARRY_RESETS: list(carry_resets)}] if carry_resets else []
    entries += [dict(notes)] if notes else []
    head = json.dumps(entries, separators=(",", ":")).encode()
    body = (len(head).to_bytes(4, "little"), head, *(column.blob for column in encoded.values()))
    checksum = 0
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return b"".join((MAGIC, checksum.to_bytes(4, "little"), *body))


def split_rows(
    payload: bytes | memoryview, columns: Mapping[str, ArraySpec]
) -> dict[str, EncodedColumn]:
    """Take a payload apart without decompressing or copying anything.

    Args:
        payload: What :func:`encode_rows` made.
        columns: What every column must look like.

    Raises:
        CheckpointError: If the payload is torn, altered or not ours.
        ShapeMismatchError: If it is intact but holds other columns, shapes or dtypes.
    """
    payload = memoryview(payload)
    if len(payload) < PREFIX.size or payload[:4] != MAGIC:
        raise CheckpointError(
            f"rows: {len(payload)} bytes that do not start with {MAGIC!r} are no encoded rows"
        )
    _, checksum, head_size = PREFIX.unpack_from(payload)
    if zlib.crc32(payload[8:]) != checksum:
        raise CheckpointError(
            f"rows: the checksum of a payload of {len(payload)} bytes is wrong, so it "
            "is torn or altered"
        )
    offset = PREFIX.size + head_size
    encoded = {}
    try:
        for name, dtype, shape, encoding, size in filter(_is_column, _head(payload, head_size)):
            encoded[name] = EncodedColumn(
                payload[offset : offset + size], encoding, dtype, tuple(shape)
            )
            offset += size
        _check_columns(encoded, columns)
    except (CheckpointError, ShapeMismatchError):
        raise
    except Exception as error:  # a header that is none, under a checksum that is right
        raise CheckpointError(f"rows: the header of a payload is damaged ({error!r})") from error
    return encoded


def decode_rows(payload: bytes | memoryview, columns: Mapping[str, ArraySpec]) -> Rows:
    """Inverse of :func:`encode_rows`; the arrays are read-only.

    Raises:
        CheckpointError, ShapeMismatchError: As :func:`split_rows`.
    """
    return {name: column.decode() for name, column in split_rows(payload, columns).items()}


def carry_resets_of(payload: bytes | memoryview) -> list[int]:
    """Rows of an intact payload that are marked: in mid-episode, and acted by a policy that had
    lost what it knew of the past.

    ``is_first`` of such a row is False, because the env went on; only the carry of the policy began
    again.
    """
    marked = notes_of(payload).get(CARRY_RESETS, [])
    if not isinstance(marked, list) or not all(type(row) is int for row in marked):
        raise CheckpointError(f"rows: marks {str(marked)[:80]} of rows are damaged")
    return marked


def notes_of(payload: bytes | memoryview) -> dict[str, Any]:
    """What the header of an intact payload says of its rows besides the columns."""
    _, _, head_size = PREFIX.unpack_from(payload)
    notes: dict[str, Any] = {}
    for entry in _head(memoryview(payload), head_size):
        if not _is_column(entry):
            notes |= entry
    return notes


def make_chunk(
    stream: StreamId,
    seq: int,
    version: PolicyVersion,
    rows: Mapping[str, Any],
    carry_resets: Sequence[int] = (),
    notes: Mapping[str, Any] | None = None,
) -> Chunk:
    """Encode consecutive rows of one stream, all acted by ``version``, as the chunk number ``seq``
    of that stream; rows are given as to :func:`encode_rows`, ``is_first`` as an array.

    ``carry_resets`` are the rows that :func:`carry_resets_of` shall find, ``notes`` what
    :func:`notes_of` shall.
    """
    first = rows["is_first"]
    return Chunk(
        stream,
        seq,
        version,
        len(first),
        agent_steps(first),
        encode_rows(rows, carry_resets=carry_resets, notes=notes),
    )


def _head(payload: memoryview, size: int) -> list[Any]:
    """One entry per column, and one for the marked rows if there are any.

    Raises:
        CheckpointError: If it is none that :func:`encode_rows` writes.
    """
    try:
        entries: list[Any] = parse_json(bytes(payload[PREFIX.size : PREFIX.size + size]))
    except ValueError as error:
        raise CheckpointError(f"rows: the header of a payload is damaged ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(e, list | dict) for e in entries):
        raise CheckpointError("rows: the header of a payload is damaged: it lists no columns")
    return entries


def _is_column(entry: Any) -> bool:
    return isinstance(entry, list)


def _encode(array: np.ndarray, level: int) -> EncodedColumn:
    blob: bytes | memoryview = array.reshape(-1).view(np.uint8).data
    encoding = "raw"
    if array.dtype == np.uint8 and array.nbytes >= MIN_COMPRESSED_BYTES:
        compressed = _compressor(level).compress(blob)
        if len(compressed) < WORTHWHILE * len(blob):
            blob = compressed
            encoding = "zstd"
    return EncodedColumn(blob, encoding, _name_of(array.dtype), array.shape)


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """Numpy makes the name again each time, and slowly."""
    return dtype.name


def _check_columns(encoded: Mapping[str, EncodedColumn], columns: Mapping[str, ArraySpec]) -> None:
    if set(encoded) != set(columns):
        raise ShapeMismatchError("columns of encoded rows", sorted(columns), sorted(encoded))
    length = next(iter(encoded.values())).shape[0]
    if type(length) is not int or length < 0:
        raise CheckpointError(f"rows: a payload of {length!r} rows is damaged")
    for name, spec in columns.items():
        got = encoded[name]
        if not (got.encoding == "raw" or (got.encoding == "zstd" and got.dtype == "uint8")):
            raise CheckpointError(f"rows: column {name!r} cannot be encoded as {got.encoding!r}")
        if got.shape != (length, *spec.shape) or got.dtype != spec.dtype:
            raise ShapeMismatchError(
                f"column {name!r}", ((length, *spec.shape), spec.dtype), (got.shape, got.dtype)
            )


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One per thread and level: the objects are costly to build and not safe to share."""
    cache: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in cache:
        cache[level] = zstandard.ZstdCompressor(level=level)
    return cache[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor
