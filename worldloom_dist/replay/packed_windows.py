"""Windows on their way from a shard with their images still as they are stored: whoever reads them decodes them.

Frames of Atari travel as a hundredth of their bytes this way, which one machine notices in its memory traffic and several in their
network. What was not worth compressing travels as the stored rows that are wanted, which saves the shard a copy. Between the two,
where windows touch whole chunks that are hardly smaller than what they hold, the shard decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldloom.core.sequence import Rows
from worldloom.data.windows import PendingWindows
from worldloom_dist.ports import SampledWindows

__all__ = ["WORTHWHILE", "PackedWindows", "unpack_all"]

WORTHWHILE = 0.25
"""Compressed chunks travel when they take at most this share of the decoded windows."""


@dataclass(frozen=True, slots=True)
class PackedWindows:
    """Drawn windows of one shard; needs the shard no more once it was :meth:`fetched`.

    Attributes:
        pending: What the buffer drew.
        shard: Which shard.
    """

    pending: PendingWindows
    shard: int

    @property
    def nbytes(self) -> int:
        """Bytes of columns that travel."""
        return self.pending.packed_bytes

    @property
    def should_travel(self) -> bool:
        """True if they should leave the shard as they are."""
        return not self.pending.is_whole and self.pending.compressed_bytes <= WORTHWHILE * self.pending.decoded_bytes

    def fetched(self) -> PackedWindows:
        """The same with everything in memory that was still to be read from disk."""
        return PackedWindows(self.pending.fetched(), self.shard)

    def unpack(self, into: Rows | None = None) -> SampledWindows:
        """Decode, to where ``PendingWindows.finish`` is told."""
        windows = self.pending.finish(into)
        shard = np.full(len(windows.row_ids), self.shard, np.int64)
        return SampledWindows(windows.columns, windows.row_ids, shard, windows.versions, windows.inserted_s)


def unpack_all(parts: Sequence[SampledWindows | PackedWindows]) -> SampledWindows:
    """Whole windows of several shards, in the given order; images are decoded to where they belong, so the batch is not copied."""
    packed = [part for part in parts if isinstance(part, PackedWindows)]
    if len(parts) == 1 or not packed:
        return SampledWindows.concatenate([part.unpack() if isinstance(part, PackedWindows) else part for part in parts])
    counts = [part.pending.num_windows if isinstance(part, PackedWindows) else len(part.row_ids) for part in parts]
    images, whole, begin = packed[0].pending.outputs(sum(counts)), [], 0
    for part, count in zip(parts, counts, strict=True):
        room = {name: image[begin : begin + count] for name, image in images.items()}
        if isinstance(part, PackedWindows):
            part = part.unpack(room)
        else:
            for name, image in room.items():
                image[...] = part.columns[name]
        rest = {name: column for name, column in part.columns.items() if name not in images}
        whole.append(SampledWindows(rest, part.row_ids, part.shard, part.versions, part.inserted_s))
        begin += count
    glued = SampledWindows.concatenate(whole)
    glued.columns.update(images)
    return glued
