"""What each kernel computes, in torch's own operators: the CPU's implementation of the operators in
``ops``, and what a GPU's is held against before its first use.

Everything computes in float32, whatever the arguments' dtype, and writes into tensors that the
caller gives. Legend: N rows, D features, K groups of rows with a scale each, G blocks of P
features (D = G P), S categoricals, C classes, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worldloom.nn.functional import cumulative_sum
from worldloom.nn.kernels.grids import cdiv, next_power_of_2

__all__ = [
    "gru_gates",
    "gru_gates_gradient",
    "lambda_returns",
    "laprop",
    "norm_silu",
    "norm_silu_gradient",
    "one_hot_gradient",
    "sample_one_hot",
    "state_gradient",
    "two_hot_weights",
]


def norm_silu(
    x: Tensor, scale: Tensor, out: Tensor, add: Tensor | None, blocks: Tensor | None, eps: float
) -> None:
    """silu(x / rms(x) * scale), after ``x += add + blocks`` where these are given.

    Args:
        x: [K, N, D]; holds the sum afterwards.
        scale: [K, D] float32.
        out: [K, N, D], or [G, N, P] with K = 1.
        add: [N, D], for K = 1.
        blocks: [G, N, P], for K = 1.
        eps: Added to the mean square.
    """
    if add is not None or blocks is not None:
        total = x.float()
        total = total if add is None else total + add.float()
        total = total if blocks is None else total + _rows(blocks.float()).unsqueeze(0)
        x.copy_(total)
    z = _normed(x.float(), eps)[0] * scale.unsqueeze(1)
    out.copy_(_like(functional.silu(z), out))


def norm_silu_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, d_x: Tensor, d_scale: Tensor, eps: float, sums: bool
) -> None:
    """The gradient of :func:`norm_silu`.

    Args:
        grad: Of ``out``, in its shape.
        x: [K, N, D], with everything added.
        scale: [K, D] float32.
        d_x: [K, N, D], written.
        d_scale: [K, M, D] float32: part m is the scale's gradient of a program's rows, the power of
            two at or above N / M.
        eps: As before.
        sums: Add to ``d_scale`` instead of replacing it.
    """
    normed, inverse = _normed(x.float(), eps)
    z = normed * scale.unsqueeze(1)
    sigmoid = torch.sigmoid(z)
    dz = _like(grad.float(), x) * (sigmoid * (1 + z * (1 - sigmoid)))
    weighted = dz * scale.unsqueeze(1)
    shared = (weighted * normed).mean(-1, keepdim=True)
    d_x.copy_((weighted - normed * shared) * inverse)
    parts, rows = d_scale.shape[1], x.shape[1]
    each = next_power_of_2(cdiv(rows, parts))
    padded = functional.pad(dz * normed, (0, 0, 0, parts * each - rows))
    summed = padded.view(len(x), parts, each, -1).sum(2)
    d_scale.copy_(d_scale + summed if sums else summed)


def gru_gates(
    pre: Tensor,
    bias: Tensor,
    before: Tensor,
    after: Tensor,
    keep: Tensor | None,
    masked: Tensor | None,
) -> None:
    """The new state from the gates' pre-activations; the update gate begins nearly closed.

    Args:
        pre: [G, N, 3 P] without bias, reset, candidate and update within each block.
        bias: [G 3 P].
        before: [N, D] the state.
        after: [N, D], written.
        keep, masked: [N, 1] and [N, D]: ``masked`` is written with ``keep`` times the new state.
    """
    _, _, mixed, update = _gates(pre, bias)
    old = before.float()
    new = old + update * (mixed - old)
    after.copy_(new)
    if keep is not None and masked is not None:
        masked.copy_(after.float() * keep.float())


def gru_gates_gradient(
    pre: Tensor, bias: Tensor, before: Tensor, grad: Tensor, carry: Tensor, d_pre: Tensor
) -> None:
    """The gradient of :func:`gru_gates` from that of the new state, ``carry + grad``.

    Args:
        pre, bias, before: As before.
        grad: [N, D].
        carry: [N, D] float32; holds afterwards what the old state gets directly.
        d_pre: [G, N, 3 P], written.
    """
    reset, cand, mixed, update = _gates(pre, bias)
    total = carry + grad.float()
    kept = total * update
    d_mixed = kept * (1 - mixed * mixed)
    d_update = kept * (mixed - before.float()) * (1 - update)
    gates = (d_mixed * cand * reset * (1 - reset), d_mixed * reset, d_update)
    blocks = d_pre.shape[0]
    d_pre.copy_(torch.cat([_blocks(gate, blocks) for gate in gates], -1))
    carry.copy_(total - kept)


def state_gradient(
    carry: Tensor, blocks: Tensor, direct: Tensor, keep: Tensor, grad: Tensor
) -> None:
    """``carry = grad + keep (carry + blocks + direct)``: from a step to the one before it.

    Args:
        carry: [N, D] float32, replaced.
        blocks: [G, N, P].
        direct: [N, D].
        keep: [N, 1], 0 where the state was cleared.
        grad: [N, D] what reaches the state before from outside of the scan.
    """
    through = carry + _rows(blocks.float()) + direct.float()
    carry.copy_(grad.float() + keep.float() * through)


def sample_one_hot(
    logits: Tensor,
    draws: Tensor,
    unimix: float,
    hard: Tensor,
    classes: Tensor,
    keep: Tensor | None,
    masked: Tensor | None,
) -> None:
    """Classes of (1 - unimix) softmax(logits) + unimix / C, by inverse transform.

    Args:
        logits: [N, S, C].
        draws: [N, S], uniform numbers in [0, 1), or int64: the classes themselves.
        unimix: Share of the uniform distribution.
        hard: [N, S C], written with the classes' codes.
        classes: [N, S] int64, written.
        keep, masked: [N, 1] and [N, S C]: ``masked`` is written with ``keep`` times the codes.
    """
    if draws.is_floating_point():
        probs = logits.float().softmax(-1) * (1.0 - unimix) + unimix / logits.shape[-1]
        classes.copy_((cumulative_sum(probs)[..., :-1] <= draws.unsqueeze(-1)).sum(-1))
    else:
        classes.copy_(draws)
    codes = functional.one_hot(classes, logits.shape[-1]).flatten(1)
    hard.copy_(codes)
    if keep is not None and masked is not None:
        masked.copy_(codes * keep.float())


def one_hot_gradient(
    logits: Tensor,
    grad: Tensor,
    carried: Tensor | None,
    keep: Tensor | None,
    direct: Tensor,
    unimix: float,
    out: Tensor,
) -> None:
    """The gradient of logits whose straight-through codes have gradient ``grad + keep carried``.

    Args:
        logits: [N, S, C].
        grad: [N, S C].
        carried, keep: [N, S C] and [N, 1], or neither.
        direct: [N, S C], added.
        unimix: As before.
        out: [N, S C], written.
    """
    total = grad.float()
    if carried is not None and keep is not None:
        total = total + keep.float() * carried.float()
    soft = logits.float().softmax(-1)
    total = total.view_as(soft) * (1.0 - unimix)
    inner = (total - (total * soft).sum(-1, keepdim=True)) * soft
    out.copy_(direct.float() + inner.flatten(1))


def lambda_returns(base: Tensor, keep: Tensor, boot: Tensor, out: Tensor) -> None:
    """``out[:, t] = base[:, t + 1] + keep[:, t + 1] out[:, t + 1]``, backwards from ``boot``.

    Args:
        base, keep: [N, T + 1] float32.
        boot: [N].
        out: [N, T], written.
    """
    last = boot
    for t in range(out.shape[1] - 1, -1, -1):
        last = torch.addcmul(base[:, t + 1], keep[:, t + 1], last)
        out[:, t] = last


def two_hot_weights(value: Tensor, bins: Tensor, index: Tensor, weight: Tensor) -> None:
    """Each value's two neighbouring bins and their weights; see ``distributions.two_hot``.

    Args:
        value: [N] float32.
        bins: [C] float32, increasing.
        index: [N, 2] int64, written.
        weight: [N, 2] float32, written.
    """
    above = torch.searchsorted(bins, value.contiguous(), right=True)
    low = (above - 1).clamp(min=0)
    high = above.clamp(max=len(bins) - 1)
    equal = low == high
    one = value * 0.0 + 1.0
    to_low = torch.where(equal, one, (bins[low] - value).abs())
    to_high = torch.where(equal, one, (bins[high] - value).abs())
    total = to_low + to_high
    index.copy_(torch.stack([low, high], -1))
    weight.copy_(torch.stack([to_high / total, to_low / total], -1))


def laprop(
    grad: Tensor,
    mean_square: Tensor,
    momentum: Tensor,
    ratio: Tensor,
    part: Tensor,
    start: Tensor,
    stop: Tensor,
    rates: Tensor,
    eps: float,
    size: int,
) -> None:
    """The moments of LaProp over all tensors, laid end to end; ``grad`` becomes the corrected
    momentum. See :class:`worldloom.nn.optim.LaProp`.

    Args:
        grad, mean_square, momentum: [N] float32, replaced.
        ratio: One number per tensor, what its gradient is divided by.
        part, start, stop: [M] int64: of each program its tensor, its first element and the one
            behind its last.
        rates: [5] on (0 changes nothing, even if gradients are NaN), 1 - beta2 and 1 - beta1, both
            times on, and the corrections of the root mean square and of the mean.
        eps: Added to the root mean square.
        size: Most elements of a program.
    """
    on, square_rate, mean_rate, square_fix, mean_fix = rates
    sizes = stop - start
    divisor = torch.repeat_interleave(ratio[part], sizes)
    g = torch.where(on > 0, grad / divisor, 0.0)
    mean_square.add_((g * g - mean_square) * square_rate)
    momentum.add_((g / (mean_square.sqrt() * square_fix + eps) - momentum) * mean_rate)
    grad.copy_(momentum * mean_fix)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * inverse, inverse


def _gates(pre: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reset, candidate, what it becomes, and update; each [N, D]."""
    whole = pre.float() + bias.float().view(pre.shape[0], 1, -1)
    reset, cand, update = (_rows(gate) for gate in whole.chunk(3, -1))
    reset = torch.sigmoid(reset)
    return reset, cand, torch.tanh(reset * cand), torch.sigmoid(update - 1)


def _rows(x: Tensor) -> Tensor:
    """[G, N, P] -> [N, D]."""
    return x.transpose(0, 1).flatten(1)


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """[N, D] -> [G, N, P]."""
    return x.reshape(len(x), blocks, -1).transpose(0, 1)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Between [1, N, D] and [G, N, P]."""
    if x.shape == other.shape:
        return x
    if x.shape[0] == 1:
        return _blocks(x[0], other.shape[0])
    return _rows(x).unsqueeze(0)
