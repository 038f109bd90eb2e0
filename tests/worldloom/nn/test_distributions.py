"""Properties of two-hot values, categoricals and bounded normals that hold for any input."""

from __future__ import annotations

import math

import pytest
import torch

from worldloom.nn import distributions
from worldloom.nn.distributions import (
    bounded_normal,
    sample_classes,
    symexp_bins,
    two_hot,
    two_hot_loss,
    two_hot_mean,
    unimix_probs,
)


@pytest.mark.parametrize("value", [-1e9, -3.7, -0.01, 0.0, 0.3, 42.0, 1e12])
def test_two_hot_of_a_value_has_that_mean_inside_the_range(value: float) -> None:
    bins = symexp_bins(255)
    code = two_hot(torch.tensor([value]), bins)
    assert float(code.weight_low + code.weight_high) == pytest.approx(1.0)
    mean = float(code.weight_low * bins[code.low] + code.weight_high * bins[code.high])
    assert mean == pytest.approx(
        max(min(value, float(bins[-1])), float(bins[0])), rel=1e-5, abs=1e-6
    )


def test_bins_are_mirrored_exactly_and_hold_zero() -> None:
    bins = symexp_bins(255)
    assert torch.equal(bins, -bins.flip(0))
    assert bins[127] == 0
    assert bool((bins.diff() > 0).all())


def test_loss_of_two_targets_is_the_sum_with_its_gradient() -> None:
    torch.manual_seed(0)
    bins = symexp_bins(41)
    logits = torch.randn(6, 41, requires_grad=True)
    targets = [two_hot(torch.randn(6) * 5, bins) for _ in range(2)]
    dense = []
    for code in targets:
        dense.append(
            torch.zeros(6, 41).scatter_add_(1, code.low[:, None], code.weight_low[:, None])
        )
        dense[-1].scatter_add_(1, code.high[:, None], code.weight_high[:, None])
    plain = -((dense[0] + 0.5 * dense[1]) * logits.log_softmax(-1)).sum(-1)
    fused = two_hot_loss(logits, targets, [1.0, 0.5])
    torch.testing.assert_close(fused, plain)
    weight = torch.randn(6)
    grads = [torch.autograd.grad((loss * weight).sum(), logits)[0] for loss in (plain, fused)]
    torch.testing.assert_close(grads[1], grads[0])


def test_equal_logits_predict_exactly_zero_whatever_their_size() -> None:
    for level in (0.0, -50.0, 1e4):
        assert two_hot_mean(torch.full((3, 255), level), symexp_bins(255)).tolist() == [0, 0, 0]


def test_unimix_bounds_every_probability_from_below() -> None:
    probs = unimix_probs(torch.tensor([100.0, 0.0, -100.0, 0.0]), 0.01)
    assert float(probs.min()) == pytest.approx(0.0025)
    assert float(probs.sum()) == pytest.approx(1.0)


def test_sampling_never_leaves_the_classes_and_follows_them() -> None:
    probs = torch.tensor([0.2, 0.5, 0.3])
    draws = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, math.nextafter(1.0, 0.0)])
    assert sample_classes(probs.expand(6, 3), draws).tolist() == [0, 0, 1, 1, 2, 2]


def test_class_of_zero_probability_is_never_drawn() -> None:
    probs = torch.tensor([0.0, 1.0, 0.0])
    assert sample_classes(probs.expand(2, 3), torch.tensor([0.0, 1.0 - 2**-24])).tolist() == [1, 1]


def test_new_actor_has_the_published_deviation() -> None:
    mean, std = bounded_normal(torch.zeros(1), torch.zeros(1))
    assert float(mean) == 0
    assert float(std) == pytest.approx(0.8927, abs=1e-4)


def test_a_value_that_is_not_finite_has_no_weights() -> None:
    """Else a reward of NaN would be trained as the highest one."""
    bins = symexp_bins(15)
    for value in (math.nan, math.inf, -math.inf):
        target = two_hot(torch.tensor([value, 1.0]), bins)
        weights = torch.stack([target.weight_low, target.weight_high])
        assert torch.isnan(weights[:, 0]).all()
        assert torch.isfinite(weights[:, 1]).all()
    beyond = two_hot(torch.tensor([1e30, -1e30]), bins)
    assert (beyond.low.tolist(), beyond.weight_low.tolist()) == ([14, 0], [0.5, 0.5])


def test_a_kernel_is_given_values_without_gaps(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(distributions, "has_kernels", lambda device: True)
    monkeypatch.setattr(distributions, "kernel", lambda name: lambda value, *_: given.append(value))
    two_hot(torch.arange(8.0).view(4, 2)[:, :1], symexp_bins(21))
    assert given[0].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert given[0].is_contiguous()
