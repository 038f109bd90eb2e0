"""Two-hot targets and their mean are inverse to each other over the whole range of the bins."""

from __future__ import annotations

import pytest
import torch

from worldloom.nn.symlog_bins import SymlogBins


@pytest.mark.parametrize("count", [11, 101])
def test_the_mean_of_a_two_hot_target_is_its_value(count: int) -> None:
    bins = SymlogBins(count=count)
    x = torch.cat(
        [torch.linspace(-20, 20, 101), torch.tensor([-22025.0, 22025.0, 1e3, 0.0])]
    ).double()
    target = bins.two_hot(x)
    torch.testing.assert_close(target.sum(-1), torch.ones_like(x))
    assert int((target > 0).sum(-1).max()) <= 2
    torch.testing.assert_close(bins.mean(target.log()), x, rtol=1e-4, atol=1e-6)


def test_values_beyond_the_bins_fall_into_the_last_one() -> None:
    bins = SymlogBins(count=21)
    assert bins.two_hot(torch.tensor([1e9, -1e9])).argmax(-1).tolist() == [20, 0]


def test_equal_logits_predict_zero() -> None:
    assert SymlogBins().mean(torch.zeros(3, 101)).abs().max() < 1e-5


def test_a_value_that_is_not_a_number_gives_a_loss_that_is_not_a_number() -> None:
    bins = SymlogBins(count=21)
    loss = bins.loss(torch.zeros(2, 21), bins.two_hot(torch.tensor([float("nan"), 1.0])))
    assert loss.isnan().tolist() == [True, False]


def test_without_bins_it_is_regression() -> None:
    x = torch.tensor([-3.0, 0.5])
    for count in (0, 1):
        bins = SymlogBins(count=count)
        torch.testing.assert_close(bins.mean(bins.two_hot(x)), x)
        assert bins.loss(bins.two_hot(x), bins.two_hot(x)).tolist() == [0, 0]


def test_a_mean_of_half_precision_logits_is_taken_in_single() -> None:
    bins = SymlogBins()
    logits = torch.randn(64, 101, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = bins.mean(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, bins.mean(logits.float()))
