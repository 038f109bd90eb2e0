"""Windows on their way from a shard with their images still as they are stored: whoever reads them decodes them.

Frames of Atari travel as a hundredth of their bytes this way, which one machine notices in its memory traffic and several in their
network. What was not worth compressing travels as the stored rows that are wanted, which saves the shard a copy. Between the two,
where windows touch whole chunks that are hardly smaller than what they hold, the shard decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldloom.data.windows import PendingWindows
from worldloom_dist.ports import SampledWindows

__all__ = ["WORTHWHILE", "PackedWindows"]

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

    def unpack(self) -> SampledWindows:
        """Decode."""
        windows = self.pending.finish()
        shard = np.full(len(windows.row_ids), self.shard, np.int64)
        return SampledWindows(windows.columns, windows.row_ids, shard, windows.versions, windows.inserted_s)
