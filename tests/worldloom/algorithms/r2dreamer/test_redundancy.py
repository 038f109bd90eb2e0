"""The redundancy loss against loops, and its gradient over several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldloom.algorithms.r2dreamer.redundancy import (
    barlow_losses,
    cross_correlation,
    joint_rows,
    standardized,
)
from worldloom.core.process_group import SINGLE_PROCESS, SingleProcess


def rows(n: int = 12, e: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, e, generator=torch.Generator().manual_seed(seed))


def losses_by_loops(projected: Tensor, target: Tensor) -> tuple[float, float]:
    first, second = projected.double().numpy(), target.double().numpy()
    n, e = first.shape
    invariance = redundancy = 0.0
    for i in range(e):
        for j in range(e):
            a = (first[:, i] - first[:, i].mean()) / first[:, i].std(ddof=1)
            b = (second[:, j] - second[:, j].mean()) / second[:, j].std(ddof=1)
            c = sum(a[row] * b[row] for row in range(n)) / n
            if i == j:
                invariance += (c - 1) ** 2
            else:
                redundancy += c**2
    return invariance, redundancy


def test_invariance_and_redundancy_are_those_of_loops() -> None:
    found = [float(value) for value in barlow_losses(rows(seed=1), rows(seed=2))]
    np.testing.assert_allclose(found, losses_by_loops(rows(seed=1), rows(seed=2)), rtol=1e-5)


def test_views_that_agree_in_independent_dimensions_lose_nothing() -> None:
    signs = torch.tensor([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=torch.float32)
    invariance, redundancy = barlow_losses(3 * signs + 1, signs)
    torch.testing.assert_close(invariance, torch.tensor(3 / 16))  # each c is 1 - 1/N, N = 4
    assert redundancy < 1e-10


def test_a_collapsed_view_loses_and_a_repeated_dimension_is_redundant() -> None:
    target = rows(200, 3)
    collapsed = target[:, :1].expand(-1, 3)
    agreeing = barlow_losses(target, target)
    repeated = barlow_losses(collapsed, target)
    assert repeated[0] > agreeing[0] + 1, "two of three dimensions do not agree"
    assert repeated[1] > agreeing[1] + 1, "one target dimension is known three times"


def test_units_and_offsets_of_a_dimension_do_not_matter() -> None:
    scale = torch.tensor([2.0, 0.1, 30.0, 1.0, 5.0])
    want = barlow_losses(rows(seed=1), rows(seed=2))
    found = barlow_losses(rows(seed=1) * scale - 3, rows(seed=2) * scale + 100)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
def test_dimensions_that_never_change_keep_loss_and_gradient_finite(value: float) -> None:
    projected = rows(seed=1)
    target = rows(seed=2)
    projected[:, 1] = value
    target[:, 3] = value
    projected.requires_grad_()
    invariance, redundancy = barlow_losses(projected, target)
    (grad,) = torch.autograd.grad(invariance + redundancy, projected)
    assert invariance.isfinite()
    assert redundancy.isfinite()
    assert grad.isfinite().all()


def test_the_target_gets_no_gradient() -> None:
    target = rows(seed=2).requires_grad_()
    projected = rows(seed=1).requires_grad_()
    invariance, redundancy = barlow_losses(projected, target)
    assert (
        torch.autograd.grad(invariance + redundancy, [target, projected], allow_unused=True)[0]
        is None
    )


def test_half_precision_is_standardized_in_float32() -> None:
    wide = (rows(64, 4) + 50).bfloat16()
    assert standardized(wide).dtype == torch.float32
    torch.testing.assert_close(standardized(wide).mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    plain = cross_correlation(wide, wide)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_correlation(wide, wide)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain), "the product too"


class OneOfTwo(SingleProcess):
    """Rank ``rank`` of two, whose gathers answer with what both hold."""

    size = 2

    def __init__(self, rank: int, both: Tensor) -> None:
        self.rank = rank
        self.both = both

    def gather(self, values: Tensor) -> Tensor:
        assert not values.requires_grad
        assert values.equal(self.both.chunk(2)[self.rank])
        return self.both


def test_the_mean_of_two_ranks_gradients_is_that_of_the_joint_batch() -> None:
    target = rows(seed=2)
    weight = rows(4, 5, seed=3).requires_grad_()
    seen = rows(12, 4, seed=4)

    def gradient(mine: Tensor, ranks: SingleProcess) -> tuple[Tensor, Tensor]:
        invariance, redundancy = barlow_losses(joint_rows(mine @ weight, ranks), target)
        loss = invariance + 0.1 * redundancy
        return loss.detach(), torch.autograd.grad(loss, weight)[0]

    want = gradient(seen, SINGLE_PROCESS)
    projected = (seen @ weight).detach()
    found = [gradient(part, OneOfTwo(rank, projected)) for rank, part in enumerate(seen.chunk(2))]
    for loss, _ in found:
        torch.testing.assert_close(loss, want[0])
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, want[1])
