"""Windows of rows from files apart from those that the run made, so that a batch can be mixed of
the two in any share.

A window belongs to the files when the row that it begins with does; none goes from one to the
other, because each has streams of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from worldloom.data.selectors import FILE, Draws, Selector, Slots, Uniform, Weights

__all__ = ["FilesApart"]


class FilesApart:
    """Two selectors: every window of the files is equally likely among these, and another selector
    decides among those of the run. Implements :class:`~worldloom.data.selectors.Selector`.

    Args:
        size: Number of slots.
        others: Over ``size`` slots, for the windows of the run.

    Attributes:
        files, others: The selectors.
        num_files, num_others: Valid starts in each.
    """

    def __init__(self, size: int, others: Selector) -> None:
        self.files = Uniform(size)
        self.others = others
        self.num_files = 0
        self.num_others = 0
        self._is_file = np.zeros(size, bool)

    def is_file(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """``[n]``: whether the rows at these slots came from files."""
        found: npt.NDArray[np.bool_] = self._is_file[slots]
        return found

    def possible(self, windows: int, wanted: int) -> int:
        """How many of ``windows`` can be drawn from files when ``wanted`` should be: all or none
        where only one of the two has any.
        """
        if not self.num_files:
            return 0
        return wanted if self.num_others else windows

    def by_chance(self, windows: int, rng: np.random.Generator) -> int:
        """How many of ``windows`` to draw from files where no share is asked for: each of the two
        in proportion to its windows.
        """
        return int(rng.binomial(windows, self.num_files / (self.num_files + self.num_others)))

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """See :class:`Selector`."""
        self._is_file[slots] = sources == FILE
        self.others.note_sources(slots, sources)

    def note_tasks(self, slots: Slots, tasks: npt.NDArray[np.integer[Any]]) -> None:
        """See :class:`Selector`."""
        self.others.note_tasks(slots, tasks)

    def add(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        is_file = self.is_file(slots)
        self.files.add(slots[is_file])
        self.others.add(slots[~is_file])
        self.num_files += int(is_file.sum())
        self.num_others += int((~is_file).sum())

    def remove(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        is_file = self.is_file(slots)
        self.files.remove(slots[is_file])
        self.others.remove(slots[~is_file])
        self.num_files -= int(is_file.sum())
        self.num_others -= int((~is_file).sum())

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`; without a share each of the two in proportion to its windows."""
        parts = []
        for count, rng in draws:
            from_files = self.possible(count, self.by_chance(count, rng))
            if from_files:
                parts.append(self.files.sample([(from_files, rng)], origin))
            if from_files < count:
                parts.append(self.others.sample([(count - from_files, rng)], origin))
        return np.concatenate(parts)

    def update(self, slots: Slots, priorities: npt.NDArray[np.float64]) -> None:
        """See :class:`Selector`; windows of files have no priorities."""
        is_other = ~self.is_file(slots)
        self.others.update(slots[is_other], priorities[is_other])

    def export_weights(self, slots: Slots) -> Weights:
        """See :class:`Selector`."""
        return self.others.export_weights(slots)

    def restore_weights(self, slots: Slots, weights: Weights) -> None:
        """See :class:`Selector`."""
        is_other = ~self.is_file(slots)
        self.others.restore_weights(slots[is_other], weights[:, np.append(is_other, True)])
