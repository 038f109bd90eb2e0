"""The way an accelerator computes norms, gates and softmax derivatives gives a CPU's numbers.

The kernels of the norm are torch's; in the place of the one that a CPU lacks stands its definition.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worldloom_dist.learner import rank_process
from worldloom.algorithms.dreamerv3 import scan
from worldloom.nn import rmsnorm
from worldloom.nn.rmsnorm import RMS_EPS, RMSNorm, has_fused_norm, norm_silu


def defined(
    grad: Tensor,
    x: Tensor,
    inverse: Tensor,
    scale: Tensor,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """By differentiating the formula; refuses what the kernel does."""
    assert grad.shape == x.shape
    assert inverse.shape == (*x.shape[:-1], 1)
    assert {t.dtype for t in (grad, x, inverse, scale)} == {torch.float32}
    with torch.enable_grad():
        x, scale = (t.detach().clone().requires_grad_() for t in (x, scale))
        y = x * (x.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt() * scale
        found = torch.autograd.grad(y, (x, scale), grad)
    return tuple(g if w else None for g, w in zip(found, wanted, strict=True))  # type: ignore[return-value]


@pytest.fixture
def accelerator(monkeypatch):
    for module in (rmsnorm, scan):
        monkeypatch.setattr(module, "has_fused_norm", lambda device: True)
        monkeypatch.setattr(module, "fused_norm_gradient", defined)


def test_norm_and_activation_have_the_composed_values_and_gradients(accelerator):
    torch.manual_seed(0)
    norm = RMSNorm(7)
    norm.scale.data.normal_()
    x = torch.randn(2, 5, 7, requires_grad=True)
    weight = torch.randn(2, 5, 7)
    results = []
    for run in (lambda: torch.nn.functional.silu(norm(x)), lambda: norm_silu(x, norm.scale)):
        out = run()
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, norm.scale])])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(x, norm.scale), results[0][0])


def gradients(name: str, precision: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    agent = rank_process.make(name)
    agent.config = dataclasses.replace(agent.config, precision=precision)
    found = {}

    names = list(agent.all_networks.trained())

    def keep(grads, accept):
        found.update(zip(names, [g.clone() for g in grads], strict=True))

    agent.optimizer.step = keep
    agent.train_step(rank_process.batch(agent, 0))
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_gradient_of_an_update_is_that_of_a_cpu(monkeypatch, precision):
    expected = gradients("dreamerv3", precision)
    for module in (rmsnorm, scan):
        monkeypatch.setattr(module, "has_fused_norm", lambda device: True)
        monkeypatch.setattr(module, "fused_norm_gradient", defined)
    found = gradients("dreamerv3", precision)
    near = 1e-4 if precision == "float32" else 0.06
    for name, value in expected.items():
        largest = float(value.abs().max())
        np.testing.assert_allclose(
            found[name], value, atol=near * max(largest, 1e-5), rtol=0, err_msg=name
        )


def test_kernels_are_used_where_they_are_right_and_nowhere_else(monkeypatch):
    cpu = torch.device("cpu")
    assert not has_fused_norm(cpu)
    tries = rmsnorm.try_fused_norm.__wrapped__
    assert not tries(cpu), "torch has no such kernel here"
    monkeypatch.setattr(rmsnorm, "fused_norm_gradient", defined)
    assert tries(cpu)
    monkeypatch.setattr(
        rmsnorm,
        "fused_norm_gradient",
        lambda *args: tuple(2 * g if g is not None else g for g in defined(*args)),
    )
    assert not tries(cpu), "a kernel that is wrong is not used"
