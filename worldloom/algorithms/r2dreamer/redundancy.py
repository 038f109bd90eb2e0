"""The loss that R2-Dreamer learns its representation from: two views of one row shall agree in
every dimension, and different dimensions shall say different things. Pure functions of tensors.

Source: R2-Dreamer, arXiv:2603.18202v2, after Barlow Twins, arXiv:2103.03230v3, Eq. 1 and 2, as the
authors' code has it (github.com/NM512/r2dreamer, ``dreamer.py``). Legend: N rows, E dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldloom.core.process_group import ProcessGroup

__all__ = ["barlow_losses", "cross_correlation", "joint_rows", "standardized"]

EPSILON = 1e-8
"""Added to the standard deviations, for dimensions that never change."""


def standardized(rows: Tensor) -> Tensor:
    """Every dimension with mean 0 and standard deviation 1 over the rows, float32. [N, E]."""
    rows = rows.float()
    std, mean = torch.std_mean(rows, 0)
    return (rows - mean) / (std + EPSILON)


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of every dimension of one view with every one of the other, always in float32.
    [N, E] -> [E, E].

    The standard deviations are those of a sample (N - 1) and the sum is divided by N, so that equal
    views have 1 - 1/N on the diagonal.
    """
    with torch.autocast(first.device.type, enabled=False):
        return standardized(first).t() @ standardized(second) / len(first)


def barlow_losses(projected: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Invariance, the sum of (1 - c[i, i])^2, and redundancy, the sum of c[i, j]^2 over i != j, of
    the cross-correlation c. 0-d each.

    Args:
        projected: [N, E] the latent states as the projector sees them.
        target: [N, E] the encoded observations; no gradient flows into them.
    """
    correlation = cross_correlation(projected, target.detach())
    own = correlation.diagonal()
    invariance = (own - 1).square().sum()
    return invariance, correlation.square().sum() - own.square().sum()


def joint_rows(rows: Tensor, ranks: ProcessGroup) -> Tensor:
    """The rows of all ranks, rank by rank: [N, E] -> [size N, E].

    This rank's own rows have a gradient, times ``size``, because a statistic of the joint batch is
    no mean over ranks, and the gradients of the parameters are averaged over them.
    """
    if ranks.size == 1:
        return rows
    fixed = rows.detach()
    shares = list(torch.split(ranks.gather(fixed), len(rows)))
    shares[ranks.rank] = fixed + ranks.size * (rows - fixed)
    return torch.cat(shares)
