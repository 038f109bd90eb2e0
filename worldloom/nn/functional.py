"""Pure functions that more than one model uses. Tensors in, tensors out; no state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cumulative_sum", "doubling_sum", "symexp", "symlog", "to_numpy"]


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): compresses large magnitudes, identity near zero (DreamerV3,
    arXiv:2301.04104v2, Eq. 9).
    """
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1), the inverse of :func:`symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def cumulative_sum(x: Tensor) -> Tensor:
    """Cumulative sum over the last axis; with torch's deterministic algorithms on every device."""
    if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(-1)
    return doubling_sum(x)  # torch has no deterministic sum of floats on CUDA


def doubling_sum(x: Tensor) -> Tensor:
    """The same in ceil(log2 n) additions of whole tensors, whose order is fixed (Hillis and
    Steele).
    """
    shift = 1
    while shift < x.shape[-1]:
        x = x + functional.pad(x[..., :-shift], (shift, 0))
        shift *= 2
    return x


def to_numpy(x: Tensor) -> np.ndarray:
    """The same numbers on the host, float32, without gradient."""
    array: np.ndarray = x.detach().float().cpu().numpy()
    return array
