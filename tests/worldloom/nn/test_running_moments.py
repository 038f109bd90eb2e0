"""Units in which networks read and write: right far from zero, and after a travel in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldloom.algorithms.mlp.trained import _mean_and_std
from worldloom.nn.running_moments import RunningMoments
from worldloom.nn.snapshot import pack, to_bfloat16, unpack_into


def moved_over(batches: Tensor, **changes: float) -> RunningMoments:
    """The moments after batches [M, N, D]."""
    moments = RunningMoments(batches.shape[-1], **{"least": 1e-3, **changes})
    for batch in batches:
        moments.move(moments.moved(batch))
    return moments


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mean", [0.0, 5000.0, -5000.0])
def test_the_deviation_is_right_far_from_zero_and_after_thousands_of_batches(mean: float) -> None:
    moments = moved_over(mean + 5 * normal(3000, 32, 2))
    found = moments.mean_and_std()
    assert found[0].tolist() == pytest.approx([mean] * 2, abs=0.5)
    assert found[1].tolist() == pytest.approx([5.0] * 2, rel=0.05)
    for ours, public in zip(found, _mean_and_std(moments.averages, least=1e-3), strict=True):
        assert torch.equal(ours, public)


@pytest.mark.parametrize(("mean", "std"), [(10.0, 0.5), (5000.0, 5.0)])
def test_units_survive_bfloat16(mean: float, std: float) -> None:
    moments = moved_over(mean + std * normal(3000, 32, 1))
    received = RunningMoments(1, least=1e-3)
    for snapshot in (
        pack(dict(moments.named_buffers()), dtype="bfloat16"),
        to_bfloat16(pack(dict(moments.named_buffers()))),
    ):
        unpack_into(snapshot, dict(received.named_buffers()))
        x = mean + std * normal(100, 1)
        torch.testing.assert_close(received.scaled(x), moments.scaled(x), atol=0.05, rtol=0.05)
        assert float(received.scaled(x).std()) == pytest.approx(1.0, abs=0.2)


def test_two_halves_count_as_the_whole() -> None:
    data = torch.cat([normal(50, 3), 7 + 3 * normal(50, 3)])
    halves = moved_over(data.view(2, 50, 3))
    for found, want in zip(
        halves.mean_and_std(), (data.mean(0), data.std(0, correction=0)), strict=True
    ):
        torch.testing.assert_close(found, want)


def test_later_batches_count_with_the_rate() -> None:
    old = torch.zeros(400, 8, 1)
    moments = moved_over(torch.cat([old, torch.full((1, 8, 1), 10.0)]), rate=0.1)
    mean, std = moments.mean_and_std()
    assert float(mean) == pytest.approx(1.0, rel=1e-4)
    assert float(std) == pytest.approx(3.0, rel=1e-4), "0.9 zeros and 0.1 tens"


def test_before_the_first_batch_and_after_a_refused_one_numbers_stay_as_they_are() -> None:
    moments = RunningMoments(2, least=0.1)
    moments.move(moments.moved(torch.full((4, 2), torch.nan)), torch.ones(()))
    x = normal(5, 2)
    assert torch.equal(moments.scaled(x), x)
    assert torch.equal(moments.restored(x), x)
