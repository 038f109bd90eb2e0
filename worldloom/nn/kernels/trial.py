"""One case of every kernel: random arguments of a few sizes, computed by its definition and by
another implementation, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloom.nn.kernels import definitions
from worldloom.nn.kernels.grids import cdiv, next_power_of_2

__all__ = ["USED", "Case", "Sizes", "cases", "difference"]

EPS = 1e-4


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a case: N rows, G blocks of P features, S categoricals of C classes, T steps, two-hot
    bins.
    """

    rows: int = 5
    blocks: int = 3
    block: int = 7
    groups: int = 4
    classes: int = 6
    steps: int = 4
    bins: int = 21

    @property
    def width(self) -> int:
        """D = G P."""
        return self.blocks * self.block


USED = Sizes(rows=8, blocks=8, block=256, groups=32, classes=16, steps=15, bins=255)
"""Of DreamerV3 size12m: several programs for a row, and blocks of full width."""


@dataclass(frozen=True, slots=True)
class Case:
    """A call of a kernel.

    Attributes:
        name: Of the kernel.
        args: Its arguments; tensors that are written included.
        written: Positions of these.
    """

    name: str
    args: tuple[Any, ...]
    written: tuple[int, ...]


def cases(device: torch.device | str, dtype: torch.dtype, sizes: Sizes = Sizes()) -> Iterator[Case]:
    """Every kernel with and without its optional arguments, views among the tensors."""
    make = _Maker(device, dtype)
    yield from _norms(make, sizes)
    yield from _gates(make, sizes)
    yield from _codes(make, sizes)
    yield from _float32(make, sizes)


def difference(case: Case, run: Callable[..., None]) -> float:
    """Largest difference of ``run`` from the definition, relative to the largest number of each
    tensor written (at least 1); infinite where one has a NaN that the other has not.
    """
    results = []
    for compute in (getattr(definitions, case.name), run):
        args = [_copy(arg) if place in case.written else arg for place, arg in enumerate(case.args)]
        compute(*args)
        results.append([args[place].double() for place in case.written])
    worst = 0.0
    for expected, found in zip(*results, strict=True):
        if not torch.equal(expected.isnan(), found.isnan()):
            return float("inf")
        expected, found = expected.nan_to_num(), found.nan_to_num()
        largest = max(1.0, float(expected.abs().max()))
        worst = max(worst, float((expected - found).abs().max()) / largest)
    return worst


class _Maker:
    """Random tensors, the same ones on every device."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """[*shape] of normal numbers."""
        values = torch.randn(*shape, generator=self.generator)
        return values.to(self.device, dtype or self.dtype)

    def wide(self, *shape: int) -> Tensor:
        """The same as a view of rows that are longer."""
        return self(*shape[:-1], shape[-1] + 3)[..., : shape[-1]]

    def single(self, *shape: int) -> Tensor:
        """float32."""
        return self(*shape, dtype=torch.float32)

    def keep(self, rows: int) -> Tensor:
        """[N, 1], every other one 0."""
        return (torch.arange(rows, device=self.device) % 2).to(self.dtype).unsqueeze(1)


def _norms(make: _Maker, s: Sizes) -> Iterator[Case]:
    args: tuple[Any, ...]
    plain, blocked = (2, s.rows, s.width), (s.blocks, s.rows, s.block)
    one = (1, s.rows, s.width)
    turned = make(s.rows, 2, s.width).transpose(0, 1)
    yield Case("norm_silu", (make(*plain), make.single(2, s.width), turned, None, None, EPS), (2,))
    for blocks in (None, make(*blocked)):
        args = (make(*one), make.single(1, s.width), make(*blocked), make.wide(*one[1:]), blocks)
        yield Case("norm_silu", (*args, EPS), (0, 2))
    for parts, sums in ((s.rows, True), (cdiv(s.rows, 4), False)):
        for x, grad in ((make(*plain), turned), (make(*one), make(*blocked))):
            scale, d_scale = make.single(len(x), s.width), make.single(len(x), parts, s.width)
            args = (grad, x, scale, torch.empty_like(x), d_scale, EPS, sums)
            yield Case("norm_silu_gradient", args, (3, 4))


def _gates(make: _Maker, s: Sizes) -> Iterator[Case]:
    args: tuple[Any, ...]
    rows = (s.rows, s.width)
    pre = make(s.blocks, 2, s.rows, 3 * s.block)[:, 1]
    bias = make(3 * s.width)
    for keep, masked in ((None, None), (make.keep(s.rows), make(*rows))):
        written = (3,) if masked is None else (3, 5)
        args = (pre, bias, make(*rows), make.wide(*rows), keep, masked)
        yield Case("gru_gates", args, written)
    args = (pre, bias, make(*rows), make(*rows), make.single(*rows), torch.empty_like(pre))
    yield Case("gru_gates_gradient", args, (4, 5))
    blocks = make(s.blocks, s.rows, s.block)
    args = (make.single(*rows), blocks, make(*rows), make.keep(s.rows), make.wide(*rows))
    yield Case("state_gradient", args, (0,))


def _codes(make: _Maker, s: Sizes) -> Iterator[Case]:
    args: tuple[Any, ...]
    flat = (s.rows, s.groups * s.classes)
    logits = 3 * make(s.rows, s.groups, s.classes)
    probs = logits.double().softmax(-1) * 0.99 + 0.01 / s.classes
    middles = probs.cumsum(-1) - probs / 2  # where rounding tells no class from its neighbour
    drawn = (torch.arange(s.rows * s.groups, device=make.device) % s.classes).view(s.rows, -1, 1)
    draws = middles.gather(-1, drawn).squeeze(-1).float()
    classes = torch.zeros(s.rows, s.groups, dtype=torch.int64, device=make.device)
    for given in (draws, drawn.squeeze(-1)):
        for keep, masked in ((None, None), (make.keep(s.rows), make(*flat))):
            args = (logits, given, 0.01, make.wide(*flat), classes, keep, masked)
            yield Case("sample_one_hot", args, (3, 4) if masked is None else (3, 4, 6))
    for carried, keep in ((None, None), (make(*flat), make.keep(s.rows))):
        args = (logits, make.wide(*flat), carried, keep, make(*flat), 0.01, make(*flat))
        yield Case("one_hot_gradient", args, (6,))


def _float32(make: _Maker, s: Sizes) -> Iterator[Case]:
    args: tuple[Any, ...]
    lead = (s.rows, s.steps + 1)
    turned = make.single(*reversed(lead)).t()
    args = (turned, make.single(*lead), turned[:, -1], make.single(s.rows, s.steps))
    yield Case("lambda_returns", args, (3,))
    bins = make.single(s.bins).sort().values
    value = torch.cat([make.single(s.rows), bins[:2], bins[-1:], bins[:1] - 1, bins[-1:] + 1])
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")], device=make.device)
    value = torch.cat([value, odd])
    index = torch.zeros(len(value), 2, dtype=torch.int64, device=make.device)
    yield Case("two_hot_weights", (value, bins, index, make.single(len(value), 2)), (2, 3))
    size = 2 * next_power_of_2(s.width)  # 4,096 for USED, as the optimizer has it
    stop = torch.tensor([s.block, 2 * s.block, 2 * s.block + 1], device=make.device)
    start = torch.tensor([0, s.block, 2 * s.block], device=make.device)
    part = torch.tensor([0, 0, 1], device=make.device)
    total = 2 * s.block + 1
    for on in (1.0, 0.0):
        grad = make.single(total) if on else torch.full((total,), float("nan"), device=make.device)
        state = (grad, make.single(total).square(), make.single(total))
        ratio = make.single(2).abs() + 1
        rates = torch.tensor([on, on * 0.01, on * 0.1, 0.9, 1.1], device=make.device)
        args = (*state, ratio, part, start, stop, rates, 1e-20, size)
        yield Case("laprop", args, (0, 1, 2))


def _copy(x: Tensor) -> Tensor:
    """With the same strides, so that views stay views."""
    whole = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return whole.copy_(x)
