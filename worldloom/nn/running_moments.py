"""Running mean and deviation of vectors, by which networks read and write them in units of about 1.

Pure state without gradient: buffers that travel with the weights. Legend: N rows, D numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningMoments"]


class RunningMoments(nn.Module):
    """Exponential averages of the first two moments, corrected for their start.

    Args:
        size: D.
        least: Smallest deviation that is divided by; a number that never changes has it.
        rate: Share of a new batch in the averages.

    Example:
        >>> moments = RunningMoments(1, least=0.1)
        >>> moments.move(moments.moved(torch.tensor([[1.0], [3.0]])))
        >>> moments.scaled(torch.tensor([[3.0]])), moments.restored(torch.tensor([[1.0]]))
        (tensor([[1.]]), tensor([[3.]]))
    """

    averages: Tensor

    def __init__(self, size: int, *, least: float, rate: float = 0.01) -> None:
        super().__init__()
        self.least = least
        self.rate = rate
        self.register_buffer("averages", torch.zeros(3, size))

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """[D] each; 0 and 1 before the first batch."""
        mean, square, weight = self.averages
        is_new = weight == 0
        fix = torch.where(is_new, 1.0, weight)
        mean = mean / fix
        std = (square / fix - mean.square()).clamp(min=0).sqrt().clamp(min=self.least)
        return mean, torch.where(is_new, 1.0, std)

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
        new = torch.stack([x.mean(0), x.square().mean(0), torch.ones_like(x[0])])
        return torch.lerp(self.averages, new, self.rate)

    @torch.no_grad()
    def move(self, averages: Tensor, bad: Tensor | None = None) -> None:
        """Take what :meth:`moved` gave, unless ``bad`` (0-d) is 1."""
        kept = averages if bad is None else torch.where(bad > 0, self.averages, averages)
        self.averages.copy_(kept)
