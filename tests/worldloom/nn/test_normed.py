"""The CPU versions of Mish and SimNorm equal the native kernels, forward and backward, also at the
ends of the range.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from worldloom.nn.normed import MLP, NormedLinear, mish, simnorm


def slopes(function: object, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)  # type: ignore[operator]
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad((y * weight).sum(), leaf)[0]


def test_mish_equals_the_native_kernel() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -88.0, 88.0, 1e4])]).double()
    for got, want in zip(slopes(mish, x), slopes(F.mish, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    single = torch.linspace(-100, 100, 4001)
    torch.testing.assert_close(mish(single), F.mish(single), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(mish(single), F.mish(single), rtol=1e-5, atol=1e-6)


def test_mish_does_not_change_its_input() -> None:
    x = torch.randn(5, 5)
    kept = x.clone()
    mish(x)
    simnorm(x.repeat(1, 8), 8)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("group", [2, 3, 8, 12])
def test_simnorm_is_a_softmax_in_each_group(group: int) -> None:
    x = torch.randn(3, 4, 24, dtype=torch.float64) * 30

    def native(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (-1, group)).softmax(-1).flatten(-2)  # type: ignore[no-untyped-call, no-any-return]

    for got, want in zip(slopes(lambda v: simnorm(v, group), x), slopes(native, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("is_compiling", [False, True])
def test_simnorm_of_no_rows_is_no_rows(is_compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    x = torch.zeros(3, 0, 16)
    assert simnorm(x, 8).shape == x.shape
    full = torch.randn(3, 2, 16)
    want = full.view(3, 2, 2, 8).softmax(-1).view(3, 2, 16)
    torch.testing.assert_close(simnorm(full, 8), want)


def test_simnorm_accepts_strided_input() -> None:
    x = torch.randn(24, 5).T
    torch.testing.assert_close(simnorm(x, 8), simnorm(x.contiguous(), 8))


def test_an_mlp_in_parts_equals_the_mlp_on_the_concatenation() -> None:
    network = MLP(7, (8, 8), 3)
    for layer in network:
        layer.reset_parameters(torch.Generator().manual_seed(0))  # type: ignore[operator]
    shared = torch.randn(2, 1, 4)
    own = torch.randn(2, 5, 3)
    whole = network(torch.cat([shared.expand(2, 5, 4), own], -1))
    torch.testing.assert_close(network.after_first(network.first((shared, own))), whole)
    torch.testing.assert_close(
        network.after_first(network.first((torch.cat([shared.expand(2, 5, 4), own], -1),))), whole
    )


def test_equal_generators_give_equal_layers() -> None:
    layers = [NormedLinear(4, 6) for _ in range(2)]
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert float(layers[0].weight.detach().std()) == pytest.approx(0.02, rel=0.5)
    assert not layers[0].bias.any()
