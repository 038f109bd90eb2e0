"""When an env holds too much memory.

With a limit of the user's, whenever it holds more. Without one, only where the machine (or the
container) runs short, and only who holds more than its part of it: half of all memory, divided by
the number of envs. So no large env is ended while there is room, and none for what another holds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from worldloom.core.memory import MemoryBound, held_bytes, memory_bounds

__all__ = ["LOOK_EVERY_S", "MemoryWatch"]

LOOK_EVERY_S = 1.0
SHORT = 0.08
"""Memory is short when less than this share of it is left; Ray ends processes at 0.05, and the
kernel at 0.
"""
SHARE_OF_ENVS = 0.5
PAUSE_S = 1.0
"""Workers that find the machine short at the same time look again, after up to this long: the
first one may have ended what holds it.
"""
GB = 1e9


class MemoryWatch:
    """Says what is wrong with the memory of a process; used by one thread.

    Args:
        limit_bytes: That one env may hold; None for no limit while memory is not short.
        sharers: Envs that share this machine.
        share: Of all memory that they may hold together when it is short.
        bounds: What bounds memory, the tightest first.
        held: Bytes that processes hold.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        limit_bytes: float | None,
        sharers: int,
        *,
        share: float = SHARE_OF_ENVS,
        bounds: Callable[[], Sequence[MemoryBound]] = memory_bounds,
        held: Callable[..., int] = held_bytes,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._sharers = max(1, sharers)
        self._share = share
        self._bounds = bounds
        self._held = held
        self._sleep = sleep

    def complaint(self, pids: Callable[[], list[int]]) -> str:
        """One sentence if processes hold too much, else an empty one.

        Args:
            pids: Lists an env's process and its children; not called while nothing is wrong.
        """
        limit = self._limit_bytes
        if limit is not None and (size := self._size(pids(), limit)) > limit:
            return (
                f"it held {size / GB:.2f} GB of memory, more than the {limit / GB:g} that "
                "--actors.env-memory-gb allows"
            )
        found = None if limit is not None else self.excess(pids)
        if found is None:
            return ""
        size, bound = found
        return (
            f"it held {size / GB:.2f} GB of memory, and of the {bound.owner}'s "
            f"{bound.total / GB:.1f} GB {bound.left / GB:.2f} were left: an env may hold "
            f"{self._part(bound) / GB:.2f} GB then, {self._share:.0%} of all memory over "
            f"{self._sharers} envs; another limit is set with --actors.env-memory-gb"
        )

    def excess(self, pids: Callable[[], list[int]]) -> tuple[int, MemoryBound] | None:
        """What processes hold and what is short, if memory is and they hold more than their part.

        It looks twice, because who holds more may just be ended by another process.
        """
        found = self._excess(pids)
        if found is not None:
            self._sleep(random.uniform(0.0, PAUSE_S))
            found = self._excess(pids)
        return found

    def _excess(self, pids: Callable[[], list[int]]) -> tuple[int, MemoryBound] | None:
        bound = next((one for one in self._bounds() if one.left < SHORT * one.total), None)
        if bound is None:
            return None
        size = self._size(pids(), self._part(bound))
        return (size, bound) if size > self._part(bound) else None

    def _part(self, bound: MemoryBound) -> float:
        return self._share * bound.total / self._sharers

    def _size(self, pids: list[int], limit: float) -> int:
        """Exact where it matters: what is shared was counted several times."""
        size = self._held(pids)
        return size if size <= limit else min(size, self._held(pids, is_exact=True))
