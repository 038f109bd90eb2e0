"""Several learner ranks that act as one: each holds a share of a joint batch, and all make the very
same update.

An agent that trains as one of N ranks does three things and knows nothing else of the others: it
draws the random numbers of the joint batch and keeps its own rows (so N ranks equal one rank with
the joint batch, and their generators stay equal), it computes statistics such as percentiles from
the gathered values of all ranks, and it averages gradients before it uses them. The loss of a share
must be a mean over equal shares, so that the mean of the gradients is the gradient of the joint
mean. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Average", "OneRank", "Ranks"]

Average = Callable[[Sequence["Tensor"], Sequence["Tensor"]], None]
"""Averages gradients (in the order of the parameters they were made for) and further small tensors
over all ranks, in place.
"""


class Ranks(Protocol):
    """What an agent needs of the other ranks. Every rank must make the same calls in the same
    order.

    Attributes:
        rank: This one, 0 .. size - 1.
        size: How many there are.
    """

    rank: int
    size: int

    def averager(self, parameters: Sequence[Tensor]) -> Average:
        """Prepare to average the gradients of ``parameters``; once per list. It may start while
        backward still runs.
        """

    def gather(self, values: Tensor) -> Tensor:
        """The values of all ranks, one behind the other along axis 0, without gradient. Equal
        shapes on all ranks.
        """


class OneRank:
    """No others: everything stays as it is. Implements :class:`Ranks`."""

    rank = 0
    size = 1

    def averager(self, parameters: Sequence[Tensor]) -> Average:
        """Something that changes nothing."""
        return _unchanged

    def gather(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


def _unchanged(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """The mean over one rank."""


ALONE = OneRank()
"""What agents begin with."""
