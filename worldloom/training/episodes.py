"""Which episodes a replay buffer holds, and where a window may begin: numbers only, no data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Episode", "EpisodeIndex"]

Ids = npt.NDArray[np.int64]


@dataclass(slots=True)
class Episode:
    """One stored episode, or what eviction left of it.

    Attributes:
        first_row: Id of its first stored row.
        steps: Transitions; it has ``steps + 1`` rows.
        ordinal: Its number in the order of insertion.
    """

    first_row: int
    steps: int
    ordinal: int


class EpisodeIndex:
    """The episodes in order, oldest first, at most ``capacity`` transitions in all."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.episodes: deque[Episode] = deque()
        self.num_steps = 0
        self._added = 0
        self._starts: dict[tuple[int, int, int], tuple[Ids, Ids]] = {}

    def add(self, first_row: int, steps: int, oldest_row: int) -> None:
        """Append an episode; the oldest transitions go, and all rows below ``oldest_row`` are gone
        already.
        """
        self.episodes.append(Episode(first_row, steps, self._added))
        self._added += 1
        self.num_steps += steps
        while self.episodes and self.episodes[0].first_row < oldest_row:
            self._drop(min(oldest_row - self.episodes[0].first_row, self.episodes[0].steps))
        while self.num_steps > self.capacity:
            self._drop(min(self.num_steps - self.capacity, self.episodes[0].steps))
        self._starts.clear()

    def _drop(self, steps: int) -> None:
        """Forget the oldest transitions of the oldest episode."""
        oldest = self.episodes[0]
        oldest.first_row = oldest.first_row + steps
        oldest.steps = oldest.steps - steps
        self.num_steps -= steps
        if not oldest.steps:
            self.episodes.popleft()

    def draw(
        self, count: int, steps: int, rng: np.random.Generator, part: tuple[int, int] = (1, 0)
    ) -> Ids:
        """First rows of windows of ``steps`` transitions inside one episode, uniform over all such
        windows.

        Args:
            count: How many, with replacement.
            steps: Transitions per window.
            rng: Source of the draw.
            part: ``(n, 0)`` draws from the episodes whose number is not a multiple of n, ``(n, 1)``
                from the others; ``(1, 0)`` from all.

        Returns:
            ``[count]`` row ids; empty when no episode is long enough.
        """
        first, ends = self._cached(steps, part)
        if not len(ends):
            return np.empty(0, np.int64)
        ranks = rng.integers(0, ends[-1], count)
        place = np.searchsorted(ends, ranks, side="right")
        before = np.where(place > 0, ends[place - 1], 0)
        return first[place] + ranks - before

    def _cached(self, steps: int, part: tuple[int, int]) -> tuple[Ids, Ids]:
        """First rows of the episodes that are long enough, and the running number of their
        windows.
        """
        key = (steps, *part)
        if key not in self._starts:
            fold, is_held_out = part
            chosen = [
                e
                for e in self.episodes
                if e.steps >= steps
                and (fold == 1 or (e.ordinal % fold == fold - 1) == bool(is_held_out))
            ]
            first = np.array([e.first_row for e in chosen], np.int64)
            ends = np.cumsum(np.array([e.steps - steps + 1 for e in chosen], np.int64))
            self._starts[key] = (first, ends)
        return self._starts[key]
