"""How long to wait between two attempts at something that keeps failing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]

MOST_DOUBLINGS = 64
"""More would overflow a float long after every pause is the longest one."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from one attempt to the next.

    Attributes:
        first_s: Seconds before the first repetition.
        longest_s: No pause is longer.

    Example:
        >>> [Backoff(0.5, 3.0).pause_s(repetition) for repetition in range(4)]
        [0.5, 1.0, 2.0, 3.0]
    """

    first_s: float
    longest_s: float

    def pause_s(self, repetition: int) -> float:
        """Seconds to wait before a repetition, counted from 0."""
        return min(self.first_s * 2.0 ** min(repetition, MOST_DOUBLINGS), self.longest_s)

    def pause_after_s(self, failures: int) -> float:
        """Seconds to wait where a single failure is no reason to wait: 0 after the first one."""
        return 0.0 if failures <= 1 else self.pause_s(failures - 2)
