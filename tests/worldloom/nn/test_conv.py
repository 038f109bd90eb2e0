"""Fused convolutions equal the plain composition, in values and in every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worldloom.nn import conv
from worldloom.nn.conv import (
    PooledConv5x5,
    UpConv5x5,
    cells_to_map,
    corners,
    place_gradient,
    pool_gradient,
)


def plain_pooled(layer: PooledConv5x5, x: Tensor) -> Tensor:
    return functional.max_pool2d(functional.conv2d(x, layer.weight, layer.bias, padding=2), 2)


def plain_up(layer: UpConv5x5, x: Tensor) -> Tensor:
    large = functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.conv2d(large, layer.weight, layer.bias, padding=2)


def with_gradients(
    run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]
) -> list[Tensor]:
    out = run(x)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), [x, *parameters])]


@pytest.mark.parametrize("kind", ["pooled", "up"])
def test_fused_convolution_equals_the_plain_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", 4 * 8 * 6 * 2)
    layer = PooledConv5x5(3, 4) if kind == "pooled" else UpConv5x5(3, 4)
    layer.bias.data.normal_()
    x = torch.randn(5, 3, 8, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = (
        (lambda v: plain_pooled(layer, v)) if kind == "pooled" else (lambda v: plain_up(layer, v))
    )
    fused = layer if kind == "pooled" else (lambda v: cells_to_map(layer(v)))
    wanted, got = (with_gradients(run, x, list(layer.parameters())) for run in (plain, fused))
    for name, a, b in zip(("output", "input", "weight", "bias"), wanted, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_equal_pixels_send_their_gradient_to_the_first_one_only() -> None:
    layer = PooledConv5x5(1, 1)
    layer.weight.data.zero_()
    layer.weight.data[0, 0, 2, 2] = 1.0
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    assert grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_pooling_is_placed_as_torch_places_it(dtype):
    """On a GPU it is chosen rather than added, so it has the same bits each time."""
    grad = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad = grad.contiguous(memory_format=torch.channels_last)
    codes = torch.randint(0, 4, grad.shape, generator=torch.Generator().manual_seed(1))
    codes = codes.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = pool_gradient(grad, codes, corners(8, 12, grad.device))
    placed = place_gradient(grad, codes)
    assert torch.equal(placed, expected)
    assert placed.is_contiguous(memory_format=torch.channels_last)
