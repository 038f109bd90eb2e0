"""Which stored rows begin a valid window, which of these are drawn next, and what was learnt of
them.

Rows are named by their ids, which never change; a row's slot is ``id % capacity``. ``first_row`` is
the id of the oldest row that is still stored: nothing below it is ever served. n windows, P parts
of the selector that have priorities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from worldloom.data.files_apart import FilesApart
from worldloom.data.selectors import Draws, OnlineQueue, Selector, Uniform

__all__ = ["WindowStarts"]

Ids = npt.NDArray[np.int64]


class WindowStarts:
    """Valid starts of windows.

    Args:
        capacity_rows: Number of slots.
        selector: Which starts are drawn; ``Uniform(capacity_rows)`` by default.

    Attributes:
        count: Valid starts.
        online: New windows that no one has seen.
        drawn: Windows ever drawn by :meth:`draw_apart`: from the run, and from files.
    """

    def __init__(self, capacity_rows: int, selector: Selector | None) -> None:
        self._capacity = capacity_rows
        self.selector = selector or Uniform(capacity_rows)
        self._is_start = np.zeros(capacity_rows, bool)
        self.count = 0
        self.online = OnlineQueue()
        self.drawn = (0, 0)

    @property
    def file_count(self) -> int:
        """Those of :attr:`count` that begin at rows from files; 0 where they are not kept apart."""
        return self.selector.num_files if isinstance(self.selector, FilesApart) else 0

    def queue(self, starts: Ids) -> None:
        """New windows, to be served once each; where files are kept apart, those of the run."""
        if isinstance(self.selector, FilesApart):
            starts = starts[~self.selector.is_file(starts % self._capacity)]
        self.online.put(starts)

    def note_sources(self, slots: Ids, sources: npt.NDArray[np.uint8]) -> None:
        """Who chose the actions of the rows that are stored at these slots now."""
        self.selector.note_sources(slots, sources)

    def note_tasks(self, slots: Ids, tasks: npt.NDArray[np.int32]) -> None:
        """Which tasks the rows that are stored at these slots now are of."""
        self.selector.note_tasks(slots, tasks)

    def add(self, starts: Ids) -> None:
        """Windows that begin at these stored rows are complete."""
        slots = starts % self._capacity
        if len(slots):
            self._is_start[slots] = True
            self.selector.add(slots)
            self.count += len(slots)

    def evict(self, slots: Ids) -> None:
        """The rows at these slots are no longer stored."""
        starts = slots[self._is_start[slots]]
        if len(starts):
            self._is_start[starts] = False
            self.selector.remove(starts)
            self.count -= len(starts)

    def draw(self, draws: Draws, first_row: int, *, online: bool) -> Ids:
        """Starts of windows: with ``online`` those that no one has seen, each once; for the rest
        the selector decides.
        """
        if not online:
            return self._select(self.selector, draws, first_row)
        return self._newest_first(self.selector, draws, first_row)

    def draw_apart(
        self, draws: Draws, files: Sequence[int | None], first_row: int, *, online: bool
    ) -> Ids:
        """As :meth:`draw`, with a fixed number of each draw from files (None leaves it to chance),
        and the others from the run; where one of the two has none, the other gives all.
        """
        assert isinstance(self.selector, FilesApart)
        apart = self.selector
        parts = [np.empty(0, np.int64)]
        for (windows, rng), wanted in zip(draws, files, strict=True):
            wanted = apart.by_chance(windows, rng) if wanted is None else wanted
            from_files = apart.possible(windows, wanted)
            own = windows - from_files
            if from_files:
                parts.append(self._select(apart.files, [(from_files, rng)], first_row))
            if own:
                select = self._newest_first if online else self._select
                parts.append(select(apart.others, [(own, rng)], first_row))
            self.drawn = (self.drawn[0] + own, self.drawn[1] + from_files)
        return np.concatenate(parts)

    def update_priorities(
        self, starts: Ids, priorities: npt.NDArray[np.float64], stored: range
    ) -> tuple[int, int]:
        """Give windows new priorities; returns how many were applied and how many are gone (their
        row is not in ``stored``).
        """
        alive = self._alive(starts, stored)
        if alive.any():
            self.selector.update(starts[alive] % self._capacity, priorities[alive])
        return int(np.count_nonzero(alive)), int(len(alive) - np.count_nonzero(alive))

    def export_weights(self, stored: range) -> tuple[Ids, npt.NDArray[np.float64]]:
        """What was learnt of windows: the starts ``[n]`` and their weights ``[P, n + 1]``; the last
        is what a new one gets.
        """
        slots = np.flatnonzero(self._is_start) if self._parts else np.empty(0, np.int64)
        return stored.start + (slots - stored.start) % self._capacity, self.selector.export_weights(
            slots
        )

    def restore_weights(self, starts: Ids, weights: npt.NDArray[np.float64], stored: range) -> bool:
        """Inverse of :meth:`export_weights`; starts that are gone are passed over, and those that
        came since count as new.

        Returns:
            False if the weights are another selector's; nothing has changed then.
        """
        if len(weights) != self._parts:
            return False
        present = np.flatnonzero(self._is_start)
        new = weights[:, -1:]
        self.selector.restore_weights(present, np.repeat(new, len(present) + 1, axis=1))
        alive = self._alive(starts, stored)
        self.selector.restore_weights(
            starts[alive] % self._capacity, np.concatenate([weights[:, :-1][:, alive], new], axis=1)
        )
        return True

    @property
    def _parts(self) -> int:
        return len(self.selector.export_weights(np.empty(0, np.int64)))

    def _newest_first(self, selector: Selector, draws: Draws, first_row: int) -> Ids:
        parts = []
        for windows, rng in draws:
            parts.append(self.online.pop(windows, first_row))
            if len(parts[-1]) < windows:
                parts.append(self._select(selector, [(windows - len(parts[-1]), rng)], first_row))
        return np.concatenate(parts)

    def _select(self, selector: Selector, draws: Draws, first_row: int) -> Ids:
        origin = first_row % self._capacity
        starts: Ids = first_row + (selector.sample(draws, origin) - origin) % self._capacity
        return starts

    def _alive(self, starts: Ids, stored: range) -> npt.NDArray[np.bool_]:
        alive: npt.NDArray[np.bool_] = (starts >= stored.start) & (starts < stored.stop)
        alive[alive] &= self._is_start[starts[alive] % self._capacity]
        return alive
