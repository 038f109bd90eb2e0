"""The way an accelerator computes an update gives a CPU's numbers: with the fused kernels, in whose
place their definitions stand here, and without, by torch's kernels of the norm. In the place of the
one that a CPU lacks stands its definition.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worldloom_dist.learner import rank_process
from worldloom.algorithms.dreamerv3 import rssm, scan
from worldloom.nn import distributions, optim, returns, rmsnorm
from worldloom.nn.kernels import kernel
from worldloom.nn.optim import LaProp, LaPropConfig
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


KERNELS = (distributions, optim, returns, rmsnorm, rssm)
"""What asks for the fused kernels."""


def use_kernels(monkeypatch) -> None:
    for module in KERNELS:
        monkeypatch.setattr(module, "has_kernels", lambda device: True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dreamerv3", "r2dreamer"])
def test_every_gradient_with_kernels_is_that_without(monkeypatch, name, precision):
    expected = gradients(name, precision)
    use_kernels(monkeypatch)
    found = gradients(name, precision)
    near = 1e-5 if precision == "float32" else 0.06
    for key, value in expected.items():
        largest = float(value.abs().max())
        np.testing.assert_allclose(
            found[key], value, atol=near * max(largest, 1e-5), rtol=0, err_msg=key
        )


def test_updates_with_kernels_lead_where_those_without_lead(monkeypatch):
    agents = []
    for wants_kernels in (False, True):
        if wants_kernels:
            use_kernels(monkeypatch)
        torch.manual_seed(0)
        agent = rank_process.make("dreamerv3")
        outputs = [agent.train_step(rank_process.batch(agent, n)) for n in range(3)]
        agents.append((agent, outputs))
    (plain, plain_out), (fused, fused_out) = agents
    for one, other in zip(plain_out, fused_out, strict=True):
        for key, value in one.metrics.items():
            torch.testing.assert_close(other.metrics[key], value, rtol=1e-3, atol=1e-4)
    for key, value in plain.all_networks.state_dict().items():
        torch.testing.assert_close(
            fused.all_networks.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key
        )


@pytest.mark.parametrize("settings", [{}, {"agc": 0.0, "weight_decay": 0.1}])
def test_the_joint_optimizer_takes_the_steps_of_the_other(monkeypatch, settings):
    def stepped() -> tuple[list[Tensor], LaProp]:
        torch.manual_seed(0)
        params = [torch.randn(shape) for shape in ((5, 3), (4,), (2, 2, 3), ())]
        optimizer = LaProp(params, LaPropConfig(lr=0.1, warmup=2, **settings))
        for n in range(4):
            grads = [
                torch.randn_like(p).transpose(0, -1).clone() if p.ndim else p * 2 for p in params
            ]
            grads = [g.transpose(0, -1) if g.ndim else g for g in grads]
            if n == 2:
                grads[1][0] = float("nan")
            optimizer.step(grads, torch.tensor(n != 2))
        return params, optimizer

    plain, one = stepped()
    monkeypatch.setattr(optim, "has_kernels", lambda device: True)
    monkeypatch.setattr(optim, "PROGRAM", 4)
    used = []
    monkeypatch.setattr(optim, "kernel", lambda name: used.append(name) or kernel(name))
    joint, other = stepped()
    assert used == ["laprop"] * 4
    for a, b in zip(plain, joint, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    one.load_state_dict(other.state_dict())
    other.load_state_dict(one.state_dict())
    for a, b in zip(one.momentum, other.momentum, strict=True):
        assert torch.equal(a, b)
    assert all(float(momentum.abs().sum()) > 0 for momentum in other.momentum)


def test_the_joint_optimizer_changes_nothing_that_is_refused(monkeypatch):
    monkeypatch.setattr(optim, "has_kernels", lambda device: True)
    params = [torch.randn(3, 2), torch.randn(4)]
    optimizer = LaProp(params, LaPropConfig(warmup=0))
    optimizer.step([torch.randn_like(p) for p in params])
    before = [t.clone() for t in (*params, *optimizer.mean_square, *optimizer.momentum)]
    nan = [torch.full_like(p, float("nan")) for p in params]
    optimizer.step(nan, torch.tensor(False))
    after = [*params, *optimizer.mean_square, *optimizer.momentum]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert int(optimizer.count) == 1
