"""Chunks that do not fit into memory, read back from the journal: it has them anyway, so the disk
tier writes nothing twice.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import EncodedColumn, split_rows
from worldloom_dist.replay.journal import segment_path
from worldloom_dist.replay.records import StoredChunk

__all__ = ["SpilledChunks"]

OPEN_FILES = 32


class _Segment:
    """An open segment; it can be read as long as anybody holds it, also when the journal has
    deleted it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size)."""
        return os.pread(self._file, size, offset)


class SpilledChunks:
    """Implements ``data.chunk_table.ColdStore`` over the segments of a journal.

    Args:
        directory: Where the segments lie.
        columns: What every row has.
        wanted: Columns that are asked for.
    """

    def __init__(
        self, directory: Path, columns: Mapping[str, ArraySpec], wanted: Collection[str]
    ) -> None:
        self._directory = directory
        self._columns = columns
        self._wanted = tuple(wanted)
        self._open: OrderedDict[int, _Segment] = OrderedDict()

    def open(self, place: tuple[int, int, int]) -> Callable[[], Mapping[str, EncodedColumn]]:
        """A function that reads a chunk; it works whatever happens to the journal before it is
        called.
        """
        segment, offset, size = place
        file = self._open.pop(segment, None) or _Segment(segment_path(self._directory, segment))
        self._open[segment] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return partial(self._read, file, offset, size)

    def _read(self, file: _Segment, offset: int, size: int) -> dict[str, EncodedColumn]:
        record = file.read(offset, size)
        if len(record) != size:
            raise CheckpointError(
                f"replay: {self._directory} lost {size - len(record)} bytes of a "
                "chunk while the run went on"
            )
        rows = split_rows(StoredChunk.unpack(record).chunk.payload, self._columns)
        return {name: rows[name].owned() for name in self._wanted}
