"""Pure functions agree with the reference arrays: distributions, layers, returns, normaliser,
actor-critic losses.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden_support import load_golden
from tests.worldloom.algorithms.dreamerv3.dreamer_reference import CONSTANTS, GRADIENT, assert_close
from worldloom.algorithms.dreamerv3.returns import (
    NormalizerState,
    ReturnNormalizer,
    imagine_losses,
    lambda_return,
    replay_losses,
)
from worldloom.nn import distributions as dist
from worldloom.nn.conv import Conv5x5
from worldloom.nn.dense import BlockLinear
from worldloom.nn.functional import symexp, symlog
from worldloom.nn.rmsnorm import RMSNorm, norm_silu

pytestmark = pytest.mark.golden

DISCOUNT = 1 - 1 / CONSTANTS["horizon"]
IMAGINE = {"default": (1.0, False), "nocontdisc_slowtar": (DISCOUNT, True)}
"""Variant -> discount of imagined returns, and whether they are computed from the slow critic."""


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    return load_golden("dreamerv3", "pure.npz")


def get(name: str) -> Tensor:
    return torch.from_numpy(arrays()[name].copy())


@pytest.mark.parametrize("function", [symlog, symexp])
def test_symlog_and_its_inverse(function: Any) -> None:
    name = function.__name__
    assert_close(function(get(f"{name}/x")), arrays()[f"{name}/y"], name)


@pytest.mark.parametrize("count", [255, 41, 8])
def test_two_hot(count: int) -> None:
    group = f"twohot{count}/"
    target = get(f"twohot{count}/target")
    bins = dist.symexp_bins(count)
    np.testing.assert_allclose(bins, arrays()[group + "bins"], rtol=1e-5)
    code = dist.two_hot(target, bins)
    dense = torch.zeros(len(target), count)
    for index, weight in ((code.low, code.weight_low), (code.high, code.weight_high)):
        dense.scatter_add_(1, index.unsqueeze(1), weight.unsqueeze(1))
    assert_close(dense, arrays()[group + "encoding"], "encoding")
    logits = get(group + "logits")
    assert_close(dist.two_hot_loss(logits, [code]), arrays()[group + "loss"], "loss")
    assert_close(dist.two_hot_mean(logits, bins), arrays()[group + "pred"], "prediction")
    zero = dist.two_hot_mean(torch.zeros(1, count), bins)
    assert zero.tolist() == arrays()[group + "pred_at_zero_logits"].tolist() == [0.0]


def test_unimix_categorical() -> None:
    log_a, log_b = (
        dist.unimix_log_probs(get(f"unimix/logits_{k}"), CONSTANTS["unimix"]) for k in "ab"
    )
    assert_close(log_a, arrays()["unimix/logp_a"], "log-probabilities")
    assert_close(
        dist.unimix_probs(get("unimix/logits_a"), CONSTANTS["unimix"]),
        arrays()["unimix/probs_a"],
        "probabilities",
    )
    assert_close(dist.categorical_kl(log_a, log_b).sum(-1), arrays()["unimix/kl_ab"], "KL")
    assert_close(dist.categorical_entropy(log_a).sum(-1), arrays()["unimix/entropy_a"], "entropy")


def test_plain_categorical() -> None:
    logs = dist.unimix_log_probs(get("categorical/logits"), 0.0)
    assert_close(
        dist.categorical_log_prob(logs, get("categorical/action")),
        arrays()["categorical/logp"],
        "log-probability",
    )
    assert_close(dist.categorical_entropy(logs), arrays()["categorical/entropy"], "entropy")


def test_bounded_normal() -> None:
    mean, std = dist.bounded_normal(get("bounded_normal/raw_mean"), get("bounded_normal/raw_std"))
    assert_close(mean, arrays()["bounded_normal/mean"], "mean")
    assert_close(std, arrays()["bounded_normal/std"], "std")
    log_prob = dist.normal_log_prob(mean, std, get("bounded_normal/action"))
    assert_close(log_prob, arrays()["bounded_normal/logp"], "log-density")
    assert_close(dist.normal_entropy(std), arrays()["bounded_normal/entropy"], "entropy")


def test_binary() -> None:
    logit = get("binary/logit")
    assert_close(dist.binary_loss(logit, get("binary/target")), arrays()["binary/loss"], "loss")
    assert_close(torch.sigmoid(logit), arrays()["binary/prob1"], "probability")


@pytest.mark.parametrize("suffix", ["", "_small"])
def test_rms_norm(suffix: str) -> None:
    norm = RMSNorm(7)
    x = get(f"rmsnorm/x{suffix}")
    norm.scale.data = get("rmsnorm/scale")
    expected = arrays()[f"rmsnorm/y{suffix}"]
    assert_close(norm(x), expected, "norm")
    assert_close(
        norm_silu(x, norm.scale),
        torch.nn.functional.silu(torch.from_numpy(expected)).numpy(),
        "norm and silu",
    )


def test_block_linear_and_convolution() -> None:
    kernel = get("blocklinear/kernel")
    blocks, inputs, outputs = kernel.shape
    layer = BlockLinear(blocks * inputs, blocks * outputs, blocks)
    layer.kernel.data = kernel
    layer.bias.data = get("blocklinear/bias")
    assert_close(layer(get("blocklinear/x")), arrays()["blocklinear/y"], "block linear")
    conv = Conv5x5(*get("conv/kernel").shape[2:])
    conv.weight.data = get("conv/kernel").permute(3, 2, 0, 1)
    conv.bias.data = get("conv/bias")
    assert_close(
        conv(get("conv/x").permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
        arrays()["conv/y"],
        "convolution",
    )


def test_lambda_return_with_real_and_with_predicted_ends() -> None:
    discount = float(arrays()["lambda/disc"])
    lam = float(arrays()["lambda/lam"])
    last = get("lambda/last").float()
    cont = (~get("lambda/term")).float()
    reward = get("lambda/rew")
    value = get("lambda/val")
    boot = get("lambda/boot")
    del value  # the reference bootstraps from boot throughout
    returns = lambda_return(reward, cont, lam * (1 - last), boot, boot[:, -1], discount=discount)
    assert_close(returns, arrays()["lambda/ret"], "returns")
    cont = get("lambda_soft/con")
    value = get("lambda/val")
    soft = lambda_return(
        reward, cont, torch.full_like(cont, lam), value, value[:, -1], discount=1.0
    )
    assert_close(soft, arrays()["lambda_soft/ret"], "soft returns")


NORMALIZERS = {
    "perc_default": (ReturnNormalizer(), "state_hi_lo", ("second", "first")),
    "perc_debias": (
        ReturnNormalizer(debias=True),
        "state_corr_hi_lo",
        ("weight", "second", "first"),
    ),
    "meanstd_debias": (
        ReturnNormalizer(kind="meanstd", limit=1e-8, debias=True),
        "state_corr_mean_sqrs",
        ("weight", "first", "second"),
    ),
}


@pytest.mark.parametrize("variant", NORMALIZERS)
def test_return_normalizer_over_six_updates(variant: str) -> None:
    normalizer, state_name, fields = NORMALIZERS[variant]
    state = normalizer.initial()
    group = f"norm/{variant}/"
    for step, values in enumerate(get("norm/inputs")):
        state = normalizer.update(state, values)
        assert_close(
            torch.stack(normalizer.offset_scale(state)),
            arrays()[group + "offset_scale"][step],
            "offset, scale",
        )
        got = torch.stack([getattr(state, field) for field in fields])
        assert_close(got, arrays()[group + state_name][step], "state")


def test_percentiles_interpolate_linearly() -> None:
    fresh = ReturnNormalizer(rate=1.0)
    states = [fresh.update(fresh.initial(), values) for values in get("norm/inputs")]
    got = torch.stack([torch.stack([s.first, s.second]) for s in states])
    assert_close(got, arrays()["norm/percentiles_5_95"], "percentiles")


@pytest.mark.parametrize("kind", ["disc", "cont"])
@pytest.mark.parametrize("variant", IMAGINE)
def test_actor_and_critic_losses_with_their_gradients(variant: str, kind: str) -> None:
    prefix, (discount, slow_target) = f"imag/{variant}/{kind}/", IMAGINE[variant]
    value_logits = get("imag/val_logits").requires_grad_()
    if kind == "disc":
        leaves = {"pol": get("imag/pol_logits").requires_grad_()}
        logs = leaves["pol"].log_softmax(-1)
        log_prob = dist.categorical_log_prob(logs, get("imag/act_disc"))
        entropy = dist.categorical_entropy(logs)
    else:
        leaves = {
            "mean": get("imag/pol_mean").requires_grad_(),
            "std": get("imag/pol_std").requires_grad_(),
        }
        log_prob = dist.normal_log_prob(leaves["mean"], leaves["std"], get("imag/act_cont"))
        entropy = dist.normal_entropy(leaves["std"])
    out = imagine_losses(
        log_prob=log_prob,
        entropy=entropy,
        reward=get("imag/rew"),
        cont=get("imag/con"),
        value_logits=value_logits,
        slow_logits=get("imag/slow_logits"),
        bins=get("imag/bins"),
        normalizer=ReturnNormalizer(),
        state=NormalizerState(get("imag/retnorm_lo0"), get("imag/retnorm_hi0"), torch.zeros(())),
        discount=discount,
        lam=CONSTANTS["lam"],
        entropy_scale=CONSTANTS["entropy_scale"],
        slow_scale=1.0,
        slow_target=slow_target,
    )
    assert_close(out.returns, arrays()[prefix + "ret"], "returns")
    assert_close(out.policy, arrays()[prefix + "policy_loss"], "policy loss")
    assert_close(out.value, arrays()[prefix + "value_loss"], "value loss")
    assert_close(out.normalizer.first, arrays()[prefix + "retnorm_lo1"], "low")
    assert_close(out.normalizer.second, arrays()[prefix + "retnorm_hi1"], "high")
    leaves["val"] = value_logits
    grads = torch.autograd.grad(out.policy.mean() + out.value.mean(), list(leaves.values()))
    for name, grad in zip(leaves, grads, strict=True):
        assert_close(grad, arrays()[f"{prefix}grad_{name}"], f"gradient of {name}", GRADIENT)


@pytest.mark.parametrize("variant", ["default", "slowtar"])
def test_replay_value_loss_with_its_gradient(variant: str) -> None:
    value_logits = get("imag/val_logits").requires_grad_()
    loss, returns = replay_losses(
        reward=get("imag/rew"),
        is_last=get("repl/last"),
        terminated=get("repl/term"),
        boot=get("repl/boot"),
        value_logits=value_logits,
        slow_logits=get("imag/slow_logits"),
        bins=get("imag/bins"),
        discount=DISCOUNT,
        lam=CONSTANTS["lam"],
        slow_scale=1.0,
    )
    assert_close(returns, arrays()[f"repl/{variant}/ret"], "returns")
    assert_close(loss, arrays()[f"repl/{variant}/loss"], "loss")
    (grad,) = torch.autograd.grad(loss.mean(), value_logits)
    assert_close(grad, arrays()[f"repl/{variant}/grad_val_logits"], "gradient", GRADIENT)
