"""Regression as classification over bins that are evenly spaced in symlog space, as TD-MPC2 does
it.

Not to be confused with DreamerV3's bins, which are evenly spaced in symlog space too but whose
expectation is taken after symexp; here the expectation is taken in symlog space and symexp comes
last. Source: TD-MPC2, arXiv:2310.16828v2, appendix on discrete regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.nn.functional import symexp, symlog
from worldloom.nn.precision import single

__all__ = ["SymlogBins"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SymlogBins:
    """K points evenly spaced on [low, high] in symlog space; K=1 regresses symlog(x), K=0 regresses
    x itself.

    Args:
        count: K.
        low, high: Ends of the range, in symlog space.
    """

    count: int = 101
    low: float = -10.0
    high: float = 10.0

    @property
    def width(self) -> float:
        """Distance of neighbouring bins."""
        return (self.high - self.low) / (self.count - 1)

    @property
    def num_logits(self) -> int:
        """Size of a head that predicts over these bins."""
        return max(self.count, 1)

    def two_hot(self, x: Tensor) -> Tensor:
        """[...] values -> [..., K]: weight on the two bins beside symlog(x), so that their mean is
        symlog(x).
        """
        if self.count <= 1:
            return (symlog(x) if self.count else x).unsqueeze(-1)
        position = (symlog(x).clamp(self.low, self.high) - self.low) / self.width
        below = position.floor()
        above_weight = (position - below).unsqueeze(-1)
        # NaN stays in the weights; as an index it would be fatal
        index = below.nan_to_num(0.0).long().unsqueeze(-1)
        target = torch.zeros(*x.shape, self.count, dtype=x.dtype, device=x.device)
        target.scatter_(-1, index, 1 - above_weight)
        return target.scatter_add_(-1, (index + 1).clamp_max(self.count - 1), above_weight)

    def mean(self, logits: Tensor) -> Tensor:
        """[..., K] logits -> [...]: symexp of the expected bin; of logits in half precision in
        float32, as 8 bits would tell few bins apart.
        """
        if self.count <= 1:
            return symexp(logits.squeeze(-1)) if self.count else logits.squeeze(-1)
        whole = single(logits)
        if whole is not logits:
            with torch.autocast(logits.device.type, enabled=False):
                return self.mean(whole)
        bins = torch.linspace(
            self.low, self.high, self.count, dtype=logits.dtype, device=logits.device
        )
        return symexp(logits.softmax(-1) @ bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] of ``logits`` [..., K] against a target made by :meth:`two_hot`
        (squared error for K <= 1).
        """
        if self.count <= 1:
            return (logits - target).square().squeeze(-1)
        return -(target * F.log_softmax(logits, -1)).sum(-1)
