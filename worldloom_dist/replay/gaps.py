"""Which chunks of a stream never came: with the next expected number this tells a duplicate from a
chunk that is late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from worldloom.core.sequence import StreamId

__all__ = ["GapTable"]


class GapTable:
    """Ranges of missing chunk numbers per stream; empty for a stream without gaps, so it costs
    nothing in a healthy run.
    """

    def __init__(self) -> None:
        self._missing: dict[StreamId, list[tuple[int, int]]] = {}

    def is_new(self, stream: StreamId, seq: int, expected: int) -> bool:
        """True when chunk ``seq`` was never stored, ``expected`` being the stream's next number."""
        return seq >= expected or any(
            start <= seq < stop for start, stop in self._missing.get(stream, ())
        )

    def stored(self, stream: StreamId, seq: int, expected: int) -> None:
        """Chunk ``seq`` was stored: it opens a gap, fills part of one, or is the expected one."""
        if seq > expected:
            self._missing.setdefault(stream, []).append((expected, seq))
        elif seq < expected:
            parts = [
                part for start, stop in self._missing[stream] for part in _without(start, stop, seq)
            ]
            self._missing[stream] = parts
            if not parts:
                del self._missing[stream]

    def state(self) -> list[list[Any]]:
        """JSON-ready."""
        return [[*stream, ranges] for stream, ranges in self._missing.items()]

    def load(self, state: Iterable[Sequence[Any]]) -> None:
        """Inverse of :meth:`state`."""
        self._missing = {
            StreamId(*entry[:3]): [(start, stop) for start, stop in entry[3]] for entry in state
        }


def _without(start: int, stop: int, seq: int) -> list[tuple[int, int]]:
    """The range [start, stop) with ``seq`` taken out."""
    if not start <= seq < stop:
        return [(start, stop)]
    return [(a, b) for a, b in ((start, seq), (seq + 1, stop)) if a < b]
