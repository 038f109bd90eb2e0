"""Several equal MLPs whose parameters are stacked on axis 0 and evaluated with one batched product
per layer.

The functions take the stacked tensors, so the same code serves all members, a drawn pair of them, a
frozen copy, and one pair per environment. Shape legend: Q members, R rows, I inputs, M hidden size,
K outputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.nn.normed import INIT_STD, mish

__all__ = [
    "EnsembleMLP",
    "PlainEnsemble",
    "StackedLayer",
    "ensemble_after_first",
    "ensemble_forward",
]


class _BatchedLinear(torch.autograd.Function):
    """x [Q, R, I], weight [Q, M, I], bias [Q, M] -> [Q, R, M].

    Autograd's own backward of ``baddbmm`` returns the weight's gradient transposed in memory, which
    optimizers must copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product of each member."""
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients laid out as the parameters are."""
        (grad,) = grads
        # they differ under autocast only
        x, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if needs_x else None,
            torch.bmm(grad.transpose(1, 2), x) if needs_weight else None,
            grad.sum(1) if needs_bias else None,
        )


class StackedLayer(NamedTuple):
    """Parameters of one layer of Q members: weight [Q, out, in], bias [Q, out]; LayerNorm [Q, out]
    or None (output layer).
    """

    weight: Tensor
    bias: Tensor
    ln_weight: Tensor | None = None
    ln_bias: Tensor | None = None

    def select(self, members: Tensor) -> StackedLayer:
        """The layer of the chosen members (indices [G])."""
        return StackedLayer(*(None if t is None else t.index_select(0, members) for t in self))  # type: ignore[arg-type]

    def detach(self) -> StackedLayer:
        """The same values without gradient."""
        return StackedLayer(*(None if t is None else t.detach() for t in self))  # type: ignore[arg-type]

    def product(self, x: Tensor) -> Tensor:
        """[Q, R, in] (or [R, in], shared by all members) -> [Q, R, out]."""
        if x.dim() == 2:  # one product for all members, whose backward needs no sum over them
            flat = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return flat.view(len(x), *self.bias.shape).transpose(0, 1)
        result: Tensor = _BatchedLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def _activate(layer: StackedLayer, pre: Tensor) -> Tensor:
    if layer.ln_weight is None or layer.ln_bias is None:
        return pre
    normed = F.layer_norm(pre, pre.shape[-1:])
    return mish(torch.addcmul(layer.ln_bias.unsqueeze(1), normed, layer.ln_weight.unsqueeze(1)))


def ensemble_after_first(
    layers: list[StackedLayer], pre: Tensor, dropout: Tensor | None = None
) -> Tensor:
    """The network after the first matrix product.

    Args:
        layers: The whole network; the product of layer 0 is already done.
        pre: [Q, R, M] result of that product, bias included; overwritten when there is dropout.
        dropout: [Q, R, M] multiplier (0 or 1/(1-p)) applied to ``pre``, or None.

    Returns:
        [Q, R, K].
    """
    x = _activate(layers[0], pre if dropout is None else pre.mul_(dropout))
    for layer in layers[1:]:
        x = _activate(layer, layer.product(x))
    return x


def ensemble_forward(
    layers: list[StackedLayer], x: Tensor, dropout: Tensor | None = None
) -> Tensor:
    """All members on ``x`` ([Q, R, I], or [R, I] shared) -> [Q, R, K]; ``dropout`` as in
    :func:`ensemble_after_first`.
    """
    return ensemble_after_first(layers, layers[0].product(x), dropout)


class _Norm(nn.Module):
    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, size))
        self.bias = nn.Parameter(torch.empty(members, size))


class _Layer(nn.Module):
    def __init__(self, members: int, inputs: int, outputs: int, *, is_output: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))
        self.ln = None if is_output else _Norm(members, outputs)

    def stacked(self) -> StackedLayer:
        """The layer's parameters in the form that functions take."""
        return StackedLayer(
            self.weight, self.bias, *(() if self.ln is None else (self.ln.weight, self.ln.bias))
        )


class EnsembleMLP(nn.Sequential):
    """Q independent MLPs with Mish NormedLinear hidden layers and a linear output that starts at
    zero.

    Args:
        members: Q.
        inputs, hidden, outputs: Sizes, as for :class:`worldloom.nn.normed.MLP`.
    """

    def __init__(self, members: int, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        sizes = (inputs, *hidden, outputs)
        pairs = list(itertools.pairwise(sizes))
        super().__init__(
            *(_Layer(members, i, o, is_output=n == len(hidden)) for n, (i, o) in enumerate(pairs))
        )

    @property
    def stacked(self) -> list[StackedLayer]:
        """The parameters, layer by layer."""
        return [layer.stacked() for layer in self]  # type: ignore[operator]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw each member's hidden weights from N(0, 0.02^2); outputs and biases zero, norms the
        identity.
        """
        for layer in self.stacked:
            layer.bias.zero_()
            if layer.ln_weight is None or layer.ln_bias is None:
                layer.weight.zero_()
            else:
                layer.weight.normal_(0.0, INIT_STD, generator=generator)
                layer.ln_weight.fill_(1.0)
                layer.ln_bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """All members: [R, I] or [Q, R, I] -> [Q, R, K]."""
        return ensemble_forward(self.stacked, x)


class PlainEnsemble(nn.Module):
    """Q independent MLPs of linear layers with ReLU between them.

    Args:
        members: Q.
        inputs, hidden, outputs: Sizes; ``hidden`` has one entry per hidden layer.
    """

    def __init__(self, members: int, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        pairs = itertools.pairwise((inputs, *hidden, outputs))
        self.members = members
        self.layers = nn.ModuleList(_Layer(members, i, o, is_output=True) for i, o in pairs)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw U(-1, 1) / sqrt(fan in), as PyTorch does for a linear layer."""
        for layer in self.layers:
            bound = 1.0 / math.sqrt(layer.get_parameter("weight").shape[-1])
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound)

    @property
    def stacked(self) -> list[StackedLayer]:
        """The parameters, layer by layer."""
        return [layer.stacked() for layer in self.layers]  # type: ignore[operator]

    @property
    def frozen(self) -> list[StackedLayer]:
        """The same without gradient."""
        return [layer.detach() for layer in self.stacked]

    def forward(self, x: Tensor, layers: list[StackedLayer] | None = None) -> Tensor:
        """All members: [R, I] or [Q, R, I] -> [Q, R, K].

        Args:
            x: One input for all members, or one for each.
            layers: From :attr:`frozen`, to let the gradient reach ``x`` alone, at half the price.
        """
        *hidden, last = self.stacked if layers is None else layers
        for layer in hidden:
            x = F.relu(layer.product(x))
        return last.product(x)
