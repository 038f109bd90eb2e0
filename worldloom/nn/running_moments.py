"""Running mean and deviation of vectors, by which networks read and write them in units of about 1.

Pure state without gradient: buffers that travel with the weights. Legend: N rows, D numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningMoments"]


class RunningMoments(nn.Module):
    """Mean and variance of the batches so far: each counts alike at first, later the newest with
    the share ``rate``.

    The variance is kept about the mean, not as a mean of squares, from which it would be lost where
    the mean is many deviations. The mean is kept as what bfloat16 holds of it and the rest, so that
    weights that travel in bfloat16 read numbers as the learner does.

    Args:
        size: D.
        least: Smallest deviation that is divided by; a number that never changes has it.
        rate: Smallest share of a new batch in the averages.

    Example:
        >>> moments = RunningMoments(1, least=0.1)
        >>> moments.move(moments.moved(torch.tensor([[1.0], [3.0]])))
        >>> moments.scaled(torch.tensor([[3.0]])), moments.restored(torch.tensor([[1.0]]))
        (tensor([[1.]]), tensor([[3.]]))
    """

    averages: Tensor
    """[4, D]: coarse mean, rest of the mean, variance, batches so far (up to 1 / ``rate``)."""

    def __init__(self, size: int, *, least: float, rate: float = 0.01) -> None:
        super().__init__()
        self.least = least
        self.rate = rate
        self.register_buffer("averages", torch.zeros(4, size))

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """[D] each; 0 and 1 before the first batch."""
        coarse, rest, variance, count = self.averages
        std = variance.clamp(min=self.least**2).sqrt()
        return coarse + rest, torch.where(count == 0, 1.0, std)

    def scaled(self, x: Tensor) -> Tensor:
        """[..., D] numbers minus their mean, over their deviation."""
        mean, std = self.mean_and_std()
        return (x - mean) / std

    def restored(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`scaled`."""
        mean, std = self.mean_and_std()
        return torch.addcmul(mean, x, std)

    @torch.no_grad()
    def moved(self, x: Tensor) -> Tensor:
        """The averages after a further batch [N, D]; see :meth:`move`."""
        coarse, rest, variance, count = self.averages
        mean = coarse + rest
        centre = x.mean(0)
        shift = centre - mean
        share = (1 / (count + 1)).clamp(min=self.rate)
        spread = (x - centre).square().mean(0)
        # exactly the variance of both together, whose means are ``shift`` apart
        variance = (1 - share) * (variance + share * shift.square()) + share * spread
        mean = mean + share * shift
        coarse = mean.bfloat16().float()
        return torch.stack([coarse, mean - coarse, variance, (count + 1).clamp(max=1 / self.rate)])

    @torch.no_grad()
    def move(self, averages: Tensor, bad: Tensor | None = None) -> None:
        """Take what :meth:`moved` gave, unless ``bad`` (0-d) is 1."""
        kept = averages if bad is None else torch.where(bad > 0, self.averages, averages)
        self.averages.copy_(kept)
