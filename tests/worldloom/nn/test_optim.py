"""LaProp: warm-up, clipping by tensor, refused updates, saved state."""

from __future__ import annotations

import pytest
import torch

from worldloom.nn.optim import LaProp, LaPropConfig


def test_first_update_of_a_warm_up_moves_nothing_and_the_next_a_little() -> None:
    p = torch.ones(3)
    optimizer = LaProp([p], LaPropConfig(lr=0.1, warmup=10))
    optimizer.step([torch.ones(3)])
    assert p.tolist() == [1, 1, 1]
    optimizer.step([torch.ones(3)])
    assert p.tolist() == pytest.approx([0.99] * 3)


def test_a_huge_gradient_counts_no_more_than_the_clip_allows() -> None:
    moments = []
    for size in (1e3, 1e6):
        optimizer = LaProp([torch.ones(4)], LaPropConfig(agc=0.3))
        optimizer.step([torch.full((4,), size)])
        moments.append(optimizer.mean_square[0])
    torch.testing.assert_close(*moments)
    torch.testing.assert_close(moments[0], torch.full((4,), 0.001 * 0.3**2))


def test_zero_gradients_move_nothing() -> None:
    p = torch.tensor([1.0, 2.0])
    LaProp([p], LaPropConfig(warmup=0)).step([torch.zeros(2)])
    assert p.tolist() == [1.0, 2.0]


def test_refused_update_leaves_parameters_and_state_alone() -> None:
    p = torch.ones(3)
    optimizer = LaProp([p], LaPropConfig(lr=0.1, warmup=0))
    optimizer.step([torch.full((3,), 0.5)])
    before = optimizer.state_dict()
    value = p.clone()
    optimizer.step([torch.full((3,), float("nan"))], torch.tensor(False))
    after = optimizer.state_dict()
    assert torch.equal(p, value)
    assert torch.equal(before["count"], after["count"])
    assert torch.equal(before["momentum"][0], after["momentum"][0])
    assert torch.equal(before["mean_square"][0], after["mean_square"][0])


def test_weight_decay_shrinks_kernels_only() -> None:
    kernel = torch.ones(2, 2)
    bias = torch.ones(2)
    LaProp([kernel, bias], LaPropConfig(lr=0.1, warmup=0, weight_decay=0.5)).step(
        [torch.zeros(2, 2), torch.zeros(2)]
    )
    assert kernel.unique().tolist() == pytest.approx([0.95])
    assert bias.tolist() == [1, 1]


def test_saved_state_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    grads = [torch.randn(4) for _ in range(4)]
    p = torch.ones(4)
    optimizer = LaProp([p], LaPropConfig(lr=0.1, warmup=2))
    for grad in grads[:2]:
        optimizer.step([grad.clone()])
    q = p.clone()
    other = LaProp([q], LaPropConfig(lr=0.1, warmup=2))
    other.load_state_dict(optimizer.state_dict())
    for grad in grads[2:]:
        optimizer.step([grad.clone()])
        other.step([grad.clone()])
    assert torch.equal(p, q)
