"""Windows on their way from a shard with their images still as they are stored: the reader
decodes them.

Frames of Atari travel as a hundredth of their bytes this way, which one machine notices in its
memory traffic and several in their network. What was not worth compressing travels as the stored
rows that are wanted, which saves the shard a copy. Between the two, where windows touch whole
chunks that are hardly smaller than what they hold, the shard decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldloom.data.windows import PendingWindows
from worldloom_dist.ports import SampledWindows

__all__ = ["WORTHWHILE", "PackedWindows", "unpack_all"]

WORTHWHILE = 0.25
"""Compressed chunks travel when they take at most this share of the decoded windows."""


@dataclass(frozen=True, slots=True)
class PackedWindows:
    """Drawn windows; need their shards no more once they were :meth:`fetched`.

    Attributes:
        pending: What the buffers drew.
        shard: Which shard they come from: one for all, or ``[n]``.
    """

    pending: PendingWindows
    shard: int | npt.NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of columns that travel."""
        return self.pending.packed_bytes

    @property
    def should_travel(self) -> bool:
        """True if they should leave the shard as they are."""
        return (
            not self.pending.is_whole
            and self.pending.compressed_bytes <= WORTHWHILE * self.pending.decoded_bytes
        )

    def ready(self) -> SampledWindows | PackedWindows | None:
        """As :meth:`prepared` if that takes no time; None if something has to be read or
        decoded.
        """
        if self.pending.is_whole:
            return self.unpack()
        return self.fetched() if self.pending.is_in_memory and self.should_travel else None

    def prepared(self) -> SampledWindows | PackedWindows:
        """What another process should be sent: what is cheaper to send as it is stored is left to
        the reader to decode.
        """
        drawn = self.fetched()
        return drawn if drawn.should_travel else drawn.unpack()

    def fetched(self) -> PackedWindows:
        """The same with everything in memory that was still to be read from disk."""
        return PackedWindows(self.pending.fetched(), self.shard)

    def part(self, first: int, last: int) -> PackedWindows:
        """The windows from ``first`` up to ``last``, without a copy."""
        return PackedWindows(
            self.pending.part(first, last),
            self.shard if isinstance(self.shard, int) else self.shard[first:last],
        )

    def unpack(self) -> SampledWindows:
        """Decode."""
        windows = self.pending.finish()
        return SampledWindows(
            windows.columns, windows.row_ids, self._shards(), windows.versions, windows.inserted_s
        )

    @classmethod
    def concatenate(cls, parts: Sequence[PackedWindows]) -> PackedWindows:
        """The windows of several shards, in the given order."""
        return cls(
            PendingWindows.concatenate([part.pending for part in parts]),
            np.concatenate([part._shards() for part in parts]),
        )

    def _shards(self) -> npt.NDArray[np.int64]:
        return (
            np.full(self.pending.num_windows, self.shard)
            if isinstance(self.shard, int)
            else self.shard
        )


def unpack_all(parts: Sequence[SampledWindows | PackedWindows]) -> SampledWindows:
    """Whole windows of several shards, in the given order; images are decoded to where they belong,
    unless some came decoded.
    """
    packed = [part for part in parts if isinstance(part, PackedWindows)]
    if len(packed) == len(parts):
        return PackedWindows.concatenate(packed).unpack()
    return SampledWindows.concatenate(
        [part.unpack() if isinstance(part, PackedWindows) else part for part in parts]
    )
