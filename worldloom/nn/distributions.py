"""What DreamerV3's heads mean: two-hot values, unimix categoricals, bounded normals, soft binaries.
Pure functions.

Everything computes and returns float32. Sampling takes its draws as an argument, so results are
functions of inputs alone. Shape legend: C classes, S categoricals, N two-hot bins, A action
dimensions, K targets.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldloom.nn.functional import cumulative_sum, symexp
from worldloom.nn.kernels import has_kernels, kernel

__all__ = [
    "TwoHotTarget",
    "binary_loss",
    "bounded_normal",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "normal_entropy",
    "normal_log_prob",
    "sample_classes",
    "symexp_bins",
    "two_hot",
    "two_hot_loss",
    "two_hot_mean",
    "unimix_log_probs",
    "unimix_probs",
]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def symexp_bins(count: int, *, limit: float = 20.0) -> Tensor:
    """``count`` bins in value space, symexp-spaced in [-limit, limit] and mirrored exactly. [N].

    An odd count has one bin at 0, an even one has two.
    """
    half = symexp(torch.linspace(-limit, 0, count // 2 + count % 2))
    return torch.cat([half, -half.flip(0)[count % 2 :]])


class TwoHotTarget(NamedTuple):
    """A value as weights on two neighbouring bins; the same bin twice, half each, outside the
    range.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor


def two_hot(value: Tensor, bins: Tensor) -> TwoHotTarget:
    """Linear interpolation of ``value`` [...] between its neighbours among ``bins`` [N], in value
    space (not symlog). Values beyond the bins count as the outermost one; the weights of a value
    that is not finite are NaN.
    """
    if has_kernels(value.device) and not value.requires_grad:
        index = torch.empty(*value.shape, 2, dtype=torch.int64, device=value.device)
        weight = torch.empty(*value.shape, 2, device=value.device)
        flat = value.contiguous().view(-1)  # of columns of a matrix reshape gives a view with gaps
        kernel("two_hot_weights")(flat, bins, index.view(-1, 2), weight.view(-1, 2))
        return TwoHotTarget(index[..., 0], index[..., 1], weight[..., 0], weight[..., 1])
    last = len(bins) - 1
    above = torch.searchsorted(bins, value.contiguous(), right=True)
    low = (above - 1).clamp(min=0)
    high = above.clamp(max=last)
    equal = low == high
    one = value * 0.0 + 1.0  # NaN for what is not finite, or it would count as the last bin
    to_low = torch.where(equal, one, (bins[low] - value).abs())
    to_high = torch.where(equal, one, (bins[high] - value).abs())
    total = to_low + to_high
    return TwoHotTarget(low, high, to_high / total, to_low / total)


class _TwoHotLoss(torch.autograd.Function):
    """Sum over K targets of the cross-entropy, with one exponential per logit in each direction."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, weight: Tensor, total: float) -> Tensor:
        """``logits [..., bins]`` against K pairs of bins in ``index`` and ``weight [..., 2 K]``;
        ``total`` sums the scales.
        """
        log_sum = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, index, weight, log_sum)
        ctx.total = total
        return total * log_sum - (torch.gather(logits, -1, index) * weight).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """``total`` x softmax - target, times the incoming gradient."""
        logits, index, weight, log_sum = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        probs = torch.sub(logits, log_sum.unsqueeze(-1)).exp_().mul_(grad * ctx.total)
        return probs.scatter_add_(-1, index, weight * -grad), None, None, None


def two_hot_loss(
    logits: Tensor, targets: list[TwoHotTarget], scales: list[float] | None = None
) -> Tensor:
    """Cross-entropy against one or several two-hot targets, sum_k scale_k * CE_k. [...].

    Args:
        logits: [..., N].
        targets: K targets of shape [...]; no gradient flows into them.
        scales: K factors, 1 by default.
    """
    scales = scales or [1.0] * len(targets)
    index = torch.stack([part for t in targets for part in (t.low, t.high)], -1)
    weights = [
        part * s
        for t, s in zip(targets, scales, strict=True)
        for part in (t.weight_low, t.weight_high)
    ]
    weight = torch.stack(weights, -1)
    result: Tensor = _TwoHotLoss.apply(logits.float(), index, weight, float(sum(scales)))  # type: ignore[no-untyped-call]
    return result


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value under softmax(logits). [..., N] -> [...].

    Mirrored bins are paired before the sum, so that equal logits predict exactly 0 although bins
    reach +-4.9e8.
    """
    half = (len(bins) + 1) // 2
    probs = functional.softmax(logits.float(), -1)
    pairs = probs[..., half:] - probs[..., : len(bins) - half].flip(-1)
    with torch.autocast(logits.device.type, enabled=False):
        return pairs @ bins[half:]


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax(logits) + unimix / C. [..., C]."""
    probs = functional.softmax(logits.float(), -1)
    return probs * (1.0 - unimix) + unimix / logits.shape[-1] if unimix else probs


def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Logarithm of :func:`unimix_probs`, exact also when ``unimix`` is 0. [..., C]."""
    if not unimix:
        return functional.log_softmax(logits.float(), -1)
    return unimix_probs(logits, unimix).log()


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per categorical from normalised log-probabilities. [..., C] -> [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def categorical_entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats from normalised log-probabilities. [..., C] -> [...]."""
    return -(log_p.exp() * log_p).sum(-1)


def categorical_log_prob(log_p: Tensor, index: Tensor) -> Tensor:
    """Log-probability of class ``index`` [...] (int). [..., C] -> [...]."""
    return torch.gather(log_p, -1, index.long().unsqueeze(-1)).squeeze(-1)


def sample_classes(probs: Tensor, uniform: Tensor) -> Tensor:
    """Classes by inverse transform: the first one whose cumulative probability exceeds ``uniform``.

    Args:
        probs: [..., C], normalised.
        uniform: [...] in [0, 1).

    Returns:
        [...] int64. Rounding of the cumulative sum can never select a class beyond the last.
    """
    below = cumulative_sum(probs)[..., :-1] <= uniform.unsqueeze(-1)
    return below.sum(-1)


def bounded_normal(
    mean: Tensor, std: Tensor, *, low: float = 0.1, high: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Raw head outputs to (mean in (-1, 1), std in (low, high)); std is about 0.89 for a raw value
    of 0.
    """
    return torch.tanh(mean.float()), (high - low) * torch.sigmoid(std.float() + 2.0) + low


def normal_log_prob(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian, summed over the last axis. [..., A] -> [...]."""
    return (-0.5 * ((value - mean) / std).square() - std.log() - HALF_LOG_2PI).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy in nats of a diagonal Gaussian, summed over the last axis. [..., A] -> [...]."""
    return (std.log() + (HALF_LOG_2PI + 0.5)).sum(-1)


def binary_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a Bernoulli with a soft target in [0, 1]. [...]."""
    return functional.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")
