"""A shard behind an event loop: what is quick is done at once, and what may take long in a thread.

Storing a chunk of Atari frames or drawing a batch takes some hundred microseconds. Handing that to
a thread and back takes about as long again, on a core whose caches know nothing of it. A disk that
must sync or be read, large copies, and decoding are left to threads, and so is waiting for a thread
that is inside the shard already (a snapshot that copies). What the loop does wait for is a journal
that is written without ``fsync``, and one who enters the shard at the very moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from worldloom.core.exceptions import BufferError
from worldloom.core.sequence import Chunk
from worldloom_dist.ports import SampledWindows, SampleRequest
from worldloom_dist.replay.packed_windows import PackedWindows
from worldloom_dist.replay.shard import ReplayShard

__all__ = ["InlineShard"]

T = TypeVar("T")

SMALL_CHUNK = 256 * 2**10
SMALL_DRAW = 4 * 2**20
"""Bytes that are copied in less time than a thread takes to begin, or little more."""


class InlineShard:
    """Appends and samples of one shard, for callers on an event loop.

    Args:
        shard: Also used by others, in threads.
    """

    def __init__(self, shard: ReplayShard) -> None:
        self._shard = shard
        self._window_bytes = shard.plain_row_bytes * shard.sampling.window_rows

    async def append(self, chunk: Chunk) -> bool:
        """As :meth:`ReplayShard.append`."""
        is_quick = self._shard.durability != "fsync" and len(chunk.payload) <= SMALL_CHUNK
        return await self._do(is_quick, self._shard.append, chunk)

    async def sample(
        self, requests: Sequence[SampleRequest]
    ) -> SampledWindows | PackedWindows | None:
        """The windows of all requests, whole or for the reader to unpack; None if there is too
        little to draw from.
        """
        windows = sum(request.windows for request in requests)
        is_quick = not self._shard.is_mapped and windows * self._window_bytes <= SMALL_DRAW
        try:
            drawn = await self._do(is_quick, self._shard.draw, requests)
        except BufferError:
            return None
        return drawn.ready() or await asyncio.to_thread(drawn.prepared)

    async def _do(self, is_quick: bool, work: Callable[..., T], *arguments: Any) -> T:
        if is_quick and not self._shard.is_busy:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)
