"""The fused norm and activation equal the composed ones; without gradients too."""

from __future__ import annotations

import torch

from worldloom.nn.rmsnorm import RMSNorm, norm_silu


def test_fused_norm_and_silu_have_the_composed_gradient() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(7)
    x = torch.randn(2, 5, 7, requires_grad=True)
    norm.scale.data.normal_()
    weight = torch.randn(2, 5, 7)
    results = []
    for run in (lambda: torch.nn.functional.silu(norm(x)), lambda: norm_silu(x, norm.scale)):
        out = run()
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, norm.scale])])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(x, norm.scale), results[0][0])


def test_half_precision_goes_through_single_and_back() -> None:
    x = torch.full((3, 4), 300.0, dtype=torch.bfloat16)
    out = norm_silu(x, torch.ones(4))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.full((3, 4), 0.7311), rtol=0.01, atol=0)
