"""Sums whose order is fixed are the sums that torch makes."""

import pytest
import torch

from worldloom.nn.functional import cumulative_sum, doubling_sum


@pytest.mark.parametrize("size", [1, 2, 5, 32, 33])
def test_a_sum_by_doubling_is_the_cumulative_sum(size):
    x = torch.rand(3, 4, size, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(doubling_sum(x), x.cumsum(-1))
    assert torch.equal(cumulative_sum(x), x.cumsum(-1)), "on a CPU it is torch's own, bit for bit"
