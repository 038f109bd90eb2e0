"""The records of a journal that are as almost all are: chunks whose columns lie there as they are,
and about which there is nothing to say. What is unlike them in any way is left to
``StoredChunk.unpack`` and ``ShardRows``, which know what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_runs import ChunkRun, PlainLayout, PlainLayouts
from worldloom_dist.replay.records import FIELDS, LARGEST

__all__ = ["PlainChunk", "PlainChunks"]

LARGEST_VERSION = np.iinfo(np.int32).max


class PlainChunk(NamedTuple):
    """One of them: what :class:`StoredChunk` says, with the layout of its payload and where in the
    segment that begins.
    """

    stream: StreamId
    seq: int
    version: int
    agent_steps: int
    first_row: int
    inserted_s: float
    layout: PlainLayout
    start: int

    def add_to(self, run: ChunkRun) -> None:
        """Let it be the next chunk of a run."""
        run.add(
            self.stream,
            self.seq,
            self.layout,
            self.start,
            agent_steps=self.agent_steps,
            version=self.version,
            inserted_s=self.inserted_s,
        )


class PlainChunks:
    """Reads them.

    Args:
        columns: What every row has.
    """

    def __init__(self, columns: Mapping[str, ArraySpec]) -> None:
        self._layouts = PlainLayouts(columns)

    def read(self, data: bytes, start: int, size: int) -> PlainChunk | None:
        """The chunk whose record is ``size`` bytes at ``start``; None if it is not plain, or not
        what a shard writes.
        """
        if size < FIELDS.size:
            return None
        fields = FIELDS.unpack_from(data, start)
        slot, incarnation, env, seq, _, version, rows, agent_steps, first_row, *_ = fields
        numbers = (slot, *fields[2:10])
        if min(numbers) < 0 or max(numbers) >= LARGEST or abs(incarnation) >= LARGEST:
            return None
        begin = start + FIELDS.size
        layout = self._layouts.layout_of(data, begin, start + size)
        if layout is None or layout.rows != rows or version > LARGEST_VERSION:
            return None
        flags = begin + layout.flags
        resets = data.count(1, flags, flags + rows)
        if resets + data.count(0, flags, flags + rows) != rows:
            return None
        stream = StreamId(slot, incarnation, env)
        if agent_steps != (0 if stream.is_imported else rows - resets) or not rows:
            return None
        return PlainChunk(stream, seq, version, agent_steps, first_row, fields[-1], layout, begin)
