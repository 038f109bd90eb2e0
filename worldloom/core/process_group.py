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
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SINGLE_PROCESS", "Average", "ProcessGroup", "SingleProcess"]

Average = Callable[[Sequence["Tensor"], Sequence["Tensor"]], None]
"""Averages gradients (in the order of the parameters they were made for) and further small tensors
over all ranks, in place.
"""


class ProcessGroup(Protocol):
    """One learner rank's view of all. Every rank must make the same calls in the same order; an
    agent uses :meth:`averager` and :meth:`gather`, the training loop the others.

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
        """The values of all ranks, one after the other along axis 0, without gradient. Equal
        shapes on all ranks.
        """

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a rank has raised it; the same answer on all ranks."""

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 passed, on every rank."""

    def close(self) -> None:
        """Leave the group."""


class SingleProcess:
    """No others: everything stays as it is. Implements :class:`ProcessGroup`."""

    rank = 0
    size = 1

    def averager(self, parameters: Sequence[Tensor]) -> Average:
        """Something that changes nothing."""
        return _unchanged

    def gather(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def any(self, *flags: bool) -> list[bool]:
        """The flags themselves."""
        return list(flags)

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value

    def close(self) -> None:
        """Nothing to leave."""


def _unchanged(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """The mean over one rank."""


SINGLE_PROCESS = SingleProcess()
"""What agents begin with."""
