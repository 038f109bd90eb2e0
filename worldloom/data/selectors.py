"""Which windows are drawn: uniform, prioritised, by recency, or a mixture; the cost hardly depends
on how many rows are stored.

A selector knows only slots (places in a ring of ``size`` rows) at which a valid window starts. The
slot of the oldest row, ``origin``, is given with every draw, and ranks run from it, so the draw is
a function of the stored rows and the generator alone: not of chunk sizes, and not of what the
process did before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import NOT_NEGATIVE, checked

__all__ = [
    "FILE",
    "POLICY",
    "SOURCES",
    "Draws",
    "Mixture",
    "OnlineQueue",
    "Prioritised",
    "Recency",
    "Selector",
    "Source",
    "SumTree",
    "Uniform",
]

Slots = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Draws = Sequence[tuple[int, np.random.Generator]]
"""How many, and with which generator, one or several times; all of them are looked up together."""
FANOUT = 64
SOURCES = {"policy": 1, "human": 2, "safety": 3, "script": 4, "file": 5}
"""Who chose the action of a row; ``file``: it was recorded elsewhere."""
FILE = SOURCES["file"]
POLICY = 1
""":data:`SOURCES` of rows of which nothing else is said."""


class SumTree:
    """Sums over a fixed number of leaves: 64 leaves to a node, 64 nodes to one sum of the top, and
    bisection in the top.

    So a draw reads two nodes whatever the size; 10 M leaves have a top of 2,442 sums. Sums are
    recomputed from what lies below, never incremented, so that rounding cannot drift.

    Args:
        size: Number of leaves.
        dtype: Of the leaves; sums are int64 or float64.
    """

    def __init__(self, size: int, dtype: npt.DTypeLike) -> None:
        total: npt.DTypeLike = np.float64 if np.issubdtype(dtype, np.floating) else np.int64
        self._sum_dtype = np.dtype(total)
        leaves = _padded(size, dtype)
        nodes = _padded(len(leaves) // FANOUT, total)
        self._levels = [leaves, nodes, np.zeros(len(nodes) // FANOUT, total)]
        self._blocks = [leaves.reshape(-1, FANOUT), nodes.reshape(-1, FANOUT)]
        self._running: npt.NDArray[Any] = self._levels[-1].cumsum()

    @property
    def total(self) -> Any:
        """Sum of all leaves."""
        return self._running[-1]

    def set(self, slots: Slots, values: Any) -> None:
        """Write leaves."""
        if not len(slots):
            return
        self._levels[0][slots] = values
        first = int(slots.min())
        last = int(slots.max())
        nodes = slots
        for below, level in zip(self._blocks, self._levels[1:], strict=True):
            first = first // FANOUT
            last = last // FANOUT
            # slots lie together, as rows of one chunk do: all nodes between are hardly more
            if last - first < len(slots):
                level[first : last + 1] = below[first : last + 1].sum(axis=1, dtype=self._sum_dtype)
            else:
                nodes = np.unique(nodes // FANOUT)
                level[nodes] = below[nodes].sum(axis=1, dtype=self._sum_dtype)
        self._levels[-1].cumsum(out=self._running)

    def get(self, slots: Slots) -> npt.NDArray[Any]:
        """Read leaves."""
        return self._levels[0][slots]

    def prefix(self, slot: int) -> Any:
        """Sum of the leaves before ``slot``."""
        total: Any = self._sum_dtype.type(0)
        for level in self._levels[:-1]:
            total += level[slot // FANOUT * FANOUT : slot].sum(dtype=self._sum_dtype)
            slot //= FANOUT
        return total + (self._running[slot - 1] if slot else 0)

    def select(self, targets: npt.NDArray[Any]) -> Slots:
        """The leaf in which the running sum passes each target in [0, total)."""
        if self._sum_dtype.kind == "f":
            targets = np.minimum(targets, np.nextafter(self._running[-1], 0.0))
        nodes = np.searchsorted(self._running, targets, side="right")
        targets = targets - np.where(nodes > 0, self._running[nodes - 1], 0)
        rows = np.arange(len(targets))
        for blocks in reversed(self._blocks):
            # [n, FANOUT]
            running = blocks.take(nodes, axis=0).cumsum(axis=1, dtype=self._sum_dtype)
            if self._sum_dtype.kind == "f":  # rounding may push a target past the end of its node
                targets = np.minimum(targets, np.nextafter(running[:, -1], 0.0))
            picks = (running > targets[:, None]).argmax(axis=1)
            targets = targets - np.where(picks > 0, running[rows, picks - 1], 0)
            nodes = nodes * FANOUT + picks
        return nodes


class Selector(Protocol):
    """What a buffer asks of a selector; the slots given to ``add`` are absent, those given to
    ``remove`` are present.
    """

    def add(self, slots: Slots) -> None:
        """Windows that start at these slots are complete."""

    def remove(self, slots: Slots) -> None:
        """The rows at these slots were evicted."""

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """Who chose the actions of the rows that are at these slots now; told before ``add``."""

    def sample(self, draws: Draws, origin: int) -> Slots:
        """Draw slots with replacement, one draw after the other; at least one slot is present."""

    def update(self, slots: Slots, priorities: npt.NDArray[np.float64]) -> None:
        """New priorities of slots that are present; selectors without priorities ignore them."""

    def export_weights(self, slots: Slots) -> Weights:
        """What priorities came to for n slots that are present, ``[parts, n + 1]``; the last is
        what a new slot gets.
        """

    def restore_weights(self, slots: Slots, weights: Weights) -> None:
        """Inverse of :meth:`export_weights`, exactly."""


class Uniform:
    """Every valid start is equally likely.

    Args:
        size: Number of slots.
    """

    def __init__(self, size: int) -> None:
        self._tree = SumTree(size, np.uint8)

    def add(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._tree.set(slots, 1)

    def remove(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._tree.set(slots, 0)

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """See :class:`Selector`; all rows are alike here."""

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`."""
        return self._at_rank(
            np.concatenate([rng.integers(0, self._tree.total, count) for count, rng in draws]),
            origin,
        )

    def update(self, slots: Slots, priorities: npt.NDArray[np.float64]) -> None:
        """See :class:`Selector`."""

    def export_weights(self, slots: Slots) -> Weights:
        """See :class:`Selector`; nothing is learnt here."""
        return np.empty((0, len(slots) + 1))

    def restore_weights(self, slots: Slots, weights: Weights) -> None:
        """See :class:`Selector`."""

    def _at_rank(self, ranks: Slots, origin: int) -> Slots:
        """Slots by rank in order of age, the oldest first."""
        return self._tree.select((ranks + self._tree.prefix(origin)) % self._tree.total)


class Source(Uniform):
    """Every valid start whose action one source chose is equally likely; while there is none, every
    valid start is.

    Args:
        size: Number of slots.
        source: Whose, see :data:`SOURCES`.
    """

    def __init__(self, size: int, source: int) -> None:
        super().__init__(size)
        self._all = Uniform(size)
        self._source = source
        self._is_own = np.zeros(size, bool)

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """See :class:`Selector`."""
        self._is_own[slots] = sources == self._source

    def add(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._all.add(slots)
        super().add(slots[self._is_own[slots]])

    def remove(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._all.remove(slots)
        super().remove(slots)

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`."""
        return (
            super().sample(draws, origin) if self._tree.total else self._all.sample(draws, origin)
        )


class Recency(Uniform):
    """The k-th newest start (k from 0) is drawn in proportion to the integral of ``x ** -power``
    over [k+1, k+2].

    That is 1 / age for ``power=1`` up to the rounding of ages to whole numbers, in closed form: no
    table grows with the buffer.

    Args:
        size: Number of slots.
        power: How strongly new rows are preferred; 0 is uniform.
    """

    def __init__(self, size: int, power: float = 1.0) -> None:
        power = checked("recency power", power, float, NOT_NEGATIVE)
        super().__init__(size)
        self._power = power

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`."""
        total = int(self._tree.total)
        u = _random(draws)
        last = float(total + 1)
        rest = 1.0 - self._power
        age = last**u if rest == 0 else (1.0 + u * (last**rest - 1.0)) ** (1.0 / rest)
        newest_first = np.minimum(age.astype(np.int64) - 1, total - 1)
        return self._at_rank(total - 1 - newest_first, origin)


class Prioritised:
    """A start is drawn with probability proportional to its priority to the power ``exponent``; new
    ones get the highest seen.

    Args:
        size: Number of slots.
        exponent: 0 is uniform, 1 fully proportional (0.6 in arXiv:1511.05952v4, section 3.3).
    """

    def __init__(self, size: int, exponent: float = 0.6) -> None:
        exponent = checked("priority exponent", exponent, float, NOT_NEGATIVE)
        self._tree = SumTree(size, np.float64)
        # the highest as a weight: its priority to the power of the exponent
        self._exponent = exponent
        self._highest = 1.0

    def add(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._tree.set(slots, self._highest)

    def remove(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        self._tree.set(slots, 0.0)

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """See :class:`Selector`; all rows are alike here."""

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`."""
        total = self._tree.total
        return self._tree.select((_random(draws) * total + self._tree.prefix(origin)) % total)

    def update(self, slots: Slots, priorities: npt.NDArray[np.float64]) -> None:
        """See :class:`Selector`; a priority of 0 would never be drawn again, and an infinite one
        leaves nothing to the others.
        """
        if not np.all((priorities > 0) & (priorities < np.inf)):
            raise ConfigurationError(
                f"priorities must be > 0 and finite, got {np.min(priorities)} to "
                f"{np.max(priorities)}"
            )
        weights = priorities**self._exponent
        self._highest = max(self._highest, float(np.max(weights, initial=0.0)))
        self._tree.set(slots, weights)

    def export_weights(self, slots: Slots) -> Weights:
        """See :class:`Selector`."""
        return np.append(self._tree.get(slots), self._highest)[None]

    def restore_weights(self, slots: Slots, weights: Weights) -> None:
        """See :class:`Selector`."""
        self._highest = float(weights[0, -1])
        self._tree.set(slots, weights[0, :-1])


class Mixture:
    """Each draw first picks one of several selectors.

    Args:
        parts: Selectors with their probabilities, which sum to 1.
    """

    def __init__(self, parts: Sequence[tuple[Selector, float]]) -> None:
        shares = [share for _, share in parts]
        if not parts or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9:
            raise ConfigurationError(f"mixture shares must be >= 0 and sum to 1, got {shares}")
        self._selectors = [selector for selector, _ in parts]
        self._shares = shares

    def add(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        for selector in self._selectors:
            selector.add(slots)

    def remove(self, slots: Slots) -> None:
        """See :class:`Selector`."""
        for selector in self._selectors:
            selector.remove(slots)

    def note_sources(self, slots: Slots, sources: npt.NDArray[np.uint8]) -> None:
        """See :class:`Selector`."""
        for selector in self._selectors:
            selector.note_sources(slots, sources)

    def sample(self, draws: Draws, origin: int) -> Slots:
        """See :class:`Selector`."""
        parts = [np.empty(0, np.int64)]
        for count, rng in draws:
            counts = rng.multinomial(count, self._shares)
            parts += [
                s.sample([(int(n), rng)], origin)
                for s, n in zip(self._selectors, counts, strict=True)
                if n
            ]
        return np.concatenate(parts)

    def update(self, slots: Slots, priorities: npt.NDArray[np.float64]) -> None:
        """See :class:`Selector`."""
        for selector in self._selectors:
            selector.update(slots, priorities)

    def export_weights(self, slots: Slots) -> Weights:
        """See :class:`Selector`: the parts of all selectors, in their order."""
        return np.concatenate([selector.export_weights(slots) for selector in self._selectors])

    def restore_weights(self, slots: Slots, weights: Weights) -> None:
        """See :class:`Selector`."""
        for selector in self._selectors:
            parts = len(selector.export_weights(slots[:0]))
            selector.restore_weights(slots, weights[:parts])
            weights = weights[parts:]


class OnlineQueue:
    """Windows that no one has seen, in the order of their completion: each is served once, before
    anything is drawn.

    Attributes:
        queued, served: Windows ever put in and taken out; counts are absolute, so that they survive
            a restart.
    """

    def __init__(self) -> None:
        self.queued = self.served = 0
        self._starts: deque[int] = deque()

    def put(self, starts: Slots) -> None:
        """Add windows by the ids of their first rows."""
        self._starts.extend(starts.tolist())
        self.queued += len(starts)

    def pop(self, count: int, first_row: int) -> Slots:
        """Take at most ``count`` windows; those that start before ``first_row`` were evicted and
        are skipped.
        """
        starts: list[int] = []
        while self._starts and len(starts) < count:
            start = self._starts.popleft()
            self.served += 1
            if start >= first_row:
                starts.append(start)
        return np.array(starts, np.int64)

    def discard_until(self, served: int) -> None:
        """Take windows out unseen until ``served`` have ever left the queue."""
        while self.served < served and self._starts:
            self._starts.popleft()
            self.served += 1


def _random(draws: Draws) -> npt.NDArray[np.float64]:
    return np.concatenate([rng.random(count) for count, rng in draws])


def _padded(size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.zeros(-(-size // FANOUT) * FANOUT, dtype)
