"""Pure functions that more than one model uses. Tensors in, tensors out; no state, no device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): compresses large magnitudes, identity near zero (DreamerV3,
    arXiv:2301.04104v2, Eq. 9).
    """
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1), the inverse of :func:`symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))
