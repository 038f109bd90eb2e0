"""The records of a journal that are as almost all are: chunks whose columns lie there as they are,
and about which there is nothing to say. What is unlike them in any way is left to
``StoredChunk.unpack`` and ``ShardRows``, which know what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_runs import PlainChunk, PlainLayouts
from worldloom_dist.replay.records import FIELDS, LARGEST, LARGEST_VERSION

__all__ = ["PlainChunks"]


class PlainChunks:
    """Reads them.

    Args:
        columns: What every row has.
    """

    def __init__(self, columns: Mapping[str, ArraySpec]) -> None:
        self._layouts = PlainLayouts(columns)

    def read(self, data: bytes | bytearray, start: int, size: int) -> PlainChunk | None:
        """The chunk whose record is ``size`` bytes at ``start``; None if it is not plain, or not
        what a shard writes.
        """
        if size < FIELDS.size:
            return None
        (
            slot,
            incarnation,
            env,
            seq,
            policy_incarnation,
            version,
            rows,
            agent_steps,
            first_row,
            agent_steps_before,
            inserted_s,
        ) = FIELDS.unpack_from(data, start)
        numbers = (slot, env, seq, policy_incarnation, version, first_row, agent_steps_before)
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
        return PlainChunk(stream, seq, version, agent_steps, first_row, inserted_s, layout, begin)
