"""Linear -> dropout -> LayerNorm -> activation: the layer that all of TD-MPC2 is made of, and its
two activations.

On a CPU the native kernels of Mish and of a softmax over groups of eight cost as much as the matrix
products beside them, so both have an autograd function here that needs a few cheap passes (Mish:
five times, SimNorm: six times faster, equal to rounding); half precision becomes float32 in them,
or every pass would round. Elsewhere, and under ``torch.compile``,
the native kernels are used.

Shape legend: R rows (any leading axes), I inputs, M outputs, V group size of SimNorm.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.nn.precision import single

__all__ = ["MLP", "Linear", "NormedLinear", "mish", "simnorm"]

INIT_STD = 0.02
"""Standard deviation of every linear weight at the start (TD-MPC2, arXiv:2310.16828v2, appendix on
implementation).
"""


class _CpuMish(torch.autograd.Function):
    """x tanh(softplus(x)) = x p / (2 - p) with p = s (2 - s), s = sigmoid(x): no exponential can
    overflow, none cancels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Mish, and what its derivative needs."""
        s = torch.sigmoid(x)
        p = (2 - s).mul_(s)
        ratio = p.div_(2 - p)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, s, ratio)
            return x * ratio
        return ratio.mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """``s x (1 - ratio^2) + ratio``, times the incoming gradient."""
        x, s, ratio = ctx.saved_tensors
        slope = torch.addcmul(torch.ones((), dtype=x.dtype), ratio, ratio, value=-1)
        return slope.mul_(s).mul_(x).add_(ratio).mul_(grads[0])


class _CpuSimNorm(torch.autograd.Function):
    """Softmax in groups of ``group`` neighbours."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: int) -> Tensor:
        """Softmax of every group; the largest value is found by halving, which vectorises."""
        grouped = x.reshape(-1, group)
        top = grouped
        width = group
        while width > 1 and width % 2 == 0:
            width //= 2
            top = torch.maximum(top[:, :width], top[:, width:])
        y = (grouped - top.amax(-1, keepdim=True)).exp_()
        y.div_(y.sum(-1, keepdim=True))
        ctx.save_for_backward(y)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """``y (g - sum(g y))`` in every group."""
        (y,) = ctx.saved_tensors
        weighted = grads[0].reshape(y.shape) * y
        return torch.addcmul(weighted, y, weighted.sum(-1, keepdim=True), value=-1).view(
            grads[0].shape
        ), None


def mish(x: Tensor) -> Tensor:
    """X tanh(ln(1 + exp x)) (Misra 2019, arXiv:1908.08681)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.mish(x)
    result: Tensor = _CpuMish.apply(single(x))  # type: ignore[no-untyped-call]
    return result


def simnorm(x: Tensor, group: int) -> Tensor:
    """Simplicial normalization: softmax inside each group of ``group`` consecutive entries of the
    last axis.

    Source: TD-MPC2, arXiv:2310.16828v2, Eq. 5 (temperature 1).
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        # no -1: an empty axis would leave it open
        groups = x.view(*x.shape[:-1], x.shape[-1] // group, group)
        return groups.softmax(-1).view(x.shape)
    result: Tensor = _CpuSimNorm.apply(single(x), group)  # type: ignore[no-untyped-call]
    return result


class Linear(nn.Module):
    """An affine map whose weights are drawn from an explicit generator.

    Args:
        inputs, outputs: Sizes I and M.
        is_zero: Start with a zero weight (heads that must predict exactly zero at first).
    """

    def __init__(self, inputs: int, outputs: int, *, is_zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.is_zero = is_zero

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw N(0, 0.02^2) weights (zero if ``is_zero``); zero bias."""
        if self.is_zero:
            self.weight.zero_()
        else:
            self.weight.normal_(0.0, INIT_STD, generator=generator)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[R, I] -> [R, M]."""
        return F.linear(x, self.weight, self.bias)


class NormedLinear(Linear):
    """Linear -> dropout -> LayerNorm (affine, eps 1e-5) -> activation.

    Args:
        inputs, outputs: Sizes I and M.
        simnorm_dim: Group size of SimNorm, or None for Mish.
    """

    def __init__(self, inputs: int, outputs: int, *, simnorm_dim: int | None = None) -> None:
        super().__init__(inputs, outputs)
        self.ln = nn.LayerNorm(outputs)
        self.simnorm_dim = simnorm_dim

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """As :class:`Linear`; LayerNorm starts as the identity."""
        super().reset_parameters(generator)
        self.ln.reset_parameters()

    def activate(self, pre: Tensor) -> Tensor:
        """The part after the matrix product: ``pre`` is [R, M]."""
        normed = F.layer_norm(
            pre, self.ln.normalized_shape, self.ln.weight, self.ln.bias, self.ln.eps
        )
        return mish(normed) if self.simnorm_dim is None else simnorm(normed, self.simnorm_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[R, I] -> [R, M]."""
        return self.activate(F.linear(x, self.weight, self.bias))


class MLP(nn.Sequential):
    """Hidden NormedLinear layers and an output layer, numbered from 0 like the authors'
    checkpoints.

    Args:
        inputs: Size of the input.
        hidden: Sizes of the hidden layers, at least one unless the output is normed.
        outputs: Size of the output.
        simnorm_dim: Group size when the output layer is Linear -> LayerNorm -> SimNorm; None for a
            plain linear output.
        is_zero: Start the plain output layer at zero.
    """

    def __init__(
        self,
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        simnorm_dim: int | None = None,
        is_zero: bool = False,
    ) -> None:
        sizes = (inputs, *hidden)
        layers: list[Linear] = [NormedLinear(i, o) for i, o in itertools.pairwise(sizes)]
        if simnorm_dim is None:
            layers.append(Linear(sizes[-1], outputs, is_zero=is_zero))
        else:
            layers.append(NormedLinear(sizes[-1], outputs, simnorm_dim=simnorm_dim))
        super().__init__(*layers)

    def first(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Pre-activation of layer 0 for an input given in parts that broadcast against each other.

        Equal to the layer on the concatenated input; a part without the sample axis is multiplied
        once, not once per sample.
        """
        layer = self[0]
        weight = layer.weight
        bias = layer.bias
        if len(parts) == 1:
            return F.linear(parts[0], weight, bias)  # type: ignore[arg-type]
        sizes = [part.shape[-1] for part in parts]
        products = [F.linear(p, w) for p, w in zip(parts, weight.split(sizes, 1), strict=True)]  # type: ignore[operator]
        return sum(products[1:], products[0] + bias)  # type: ignore[operator]

    def after_first(self, pre: Tensor) -> Tensor:
        """The rest of the network after :meth:`first`."""
        first, *rest = self
        x: Tensor = first.activate(pre)  # type: ignore[operator]
        for layer in rest:
            x = layer(x)
        return x
