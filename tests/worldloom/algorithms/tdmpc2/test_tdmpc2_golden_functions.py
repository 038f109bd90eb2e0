"""The scalar mathematics of TD-MPC2 against the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.tdmpc2.golden_table import (
    BIN_HIGH,
    BIN_LOW,
    FORWARD,
    SIMNORM_DIM,
    TAU,
    golden,
    tensor,
)
from worldloom.algorithms.registry import make_agent_config
from worldloom.algorithms.tdmpc2.losses import termination_metrics
from worldloom.algorithms.tdmpc2.networks import PolicySample
from worldloom.algorithms.tdmpc2.running_scale import percentile_spread, updated_scale
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig, resolve
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.nn.functional import symexp, symlog
from worldloom.nn.normed import NormedLinear, mish, simnorm
from worldloom.nn.symlog_bins import SymlogBins

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden("functions.npz")


def check(got: torch.Tensor, want: np.ndarray, name: str) -> None:
    assert_agrees(got, want, tolerance=FORWARD, name=name)


def test_symlog_and_symexp_agree(arrays: dict[str, np.ndarray]) -> None:
    check(symlog(tensor(arrays["symlog_in"])), arrays["symlog_out"], "symlog")
    check(symexp(tensor(arrays["symexp_in"])), arrays["symexp_out"], "symexp")


@pytest.mark.parametrize("count", [21, 101])
def test_bins_agree(arrays: dict[str, np.ndarray], count: int) -> None:
    bins = SymlogBins(count=count, low=BIN_LOW, high=BIN_HIGH)
    check(torch.linspace(bins.low, bins.high, count), arrays[f"bins_{count}"], "bins")
    check(
        bins.two_hot(tensor(arrays[f"two_hot_in_{count}"]).squeeze(-1)),
        arrays[f"two_hot_out_{count}"],
        "two_hot",
    )
    check(
        bins.mean(tensor(arrays[f"two_hot_inv_in_{count}"])).unsqueeze(-1),
        arrays[f"two_hot_inv_out_{count}"],
        "mean",
    )
    target = bins.two_hot(tensor(arrays[f"soft_ce_target_{count}"]).squeeze(-1))
    loss = bins.loss(tensor(arrays[f"soft_ce_logits_{count}"]), target)
    check(loss.unsqueeze(-1), arrays[f"soft_ce_out_{count}"], "loss")


def test_a_single_bin_regresses_symlog(arrays: dict[str, np.ndarray]) -> None:
    got = SymlogBins(count=1, low=BIN_LOW, high=BIN_HIGH).two_hot(
        tensor(arrays["two_hot_in_101"]).squeeze(-1)
    )
    check(got, arrays["two_hot_1bin_out"], "one bin")


def test_simnorm_and_normed_linear_agree(arrays: dict[str, np.ndarray]) -> None:
    check(simnorm(tensor(arrays["simnorm_in"]), SIMNORM_DIM), arrays["simnorm_out"], "simnorm")
    outputs, inputs = arrays["normed_linear_weight"].shape
    x = tensor(arrays["normed_linear_in"])
    for group, key in ((None, "normed_linear_out"), (SIMNORM_DIM, "normed_linear_simnorm_out")):
        layer = NormedLinear(inputs, outputs, simnorm_dim=group)
        names = {"weight": "weight", "bias": "bias", "ln.weight": "ln_weight", "ln.bias": "ln_bias"}
        layer.load_state_dict(
            {ours: tensor(arrays[f"normed_linear_{theirs}"]) for ours, theirs in names.items()}
        )
        check(layer(x), arrays[key], key)
        check(F.linear(x, layer.weight, layer.bias), arrays["normed_linear_linear_out"], "product")
    assert torch.allclose(mish(x), F.mish(x), atol=1e-6)


def test_policy_mathematics_agree(arrays: dict[str, np.ndarray]) -> None:
    low = -10.0
    high = 2.0
    log_std = low + 0.5 * (high - low) * (torch.tanh(tensor(arrays["log_std_in"])) + 1)
    check(log_std, arrays["log_std_out"], "log_std")
    mean = tensor(arrays["policy_math_mu"])
    eps = tensor(arrays["policy_math_eps"])
    before = mean + eps * log_std.exp()
    check(before, arrays["policy_math_presquash_action"], "presquash")
    sample = PolicySample(before.tanh(), mean, log_std, eps)
    check(sample.gaussian_log_prob(), arrays["policy_math_gauss_logprob"], "gaussian")
    check(sample.log_prob(), arrays["policy_math_logprob"], "log_prob")
    check(sample.action, arrays["policy_math_action"], "action")
    check(mean.tanh(), arrays["policy_math_mean"], "mean")


@pytest.mark.parametrize("batch", [16, 256])
def test_running_scale_agrees(arrays: dict[str, np.ndarray], batch: int) -> None:
    scale = torch.ones(())
    for t, values in enumerate(tensor(arrays[f"running_scale_in_{batch}"]).squeeze(-1)):
        want = arrays[f"running_scale_p5_p95_{batch}"][t].reshape(2)
        check(torch.stack(percentile_spread(values)), want, "percentiles")
        scale = updated_scale(scale, values, TAU)
        check(scale.reshape(1), arrays[f"running_scale_value_{batch}"][t].reshape(1), "scale")


@pytest.mark.parametrize(
    ("suite", "key"),
    [("dmc:walker-walk", "discount_default"), ("gym:Walker2d-v4", "discount_max0p99")],
)
def test_discount_follows_the_episode_limit(
    arrays: dict[str, np.ndarray], suite: str, key: str
) -> None:
    config = make_agent_config("tdmpc2:5m")
    assert isinstance(config, TDMPC2AgentConfig)
    got = []
    for limit in arrays["discount_episode_length"]:
        env = EnvSpec(
            name=suite,
            obs={"obs": ArraySpec((3,))},
            action={"action": ArraySpec((1,))},
            episode_limit=int(limit),
        )
        got.append(resolve(config, env).discount)
    assert_agrees(np.array(got), arrays[key], tolerance=1e-6, name=key)


def test_termination_metrics_agree(arrays: dict[str, np.ndarray]) -> None:
    logits = torch.logit(tensor(arrays["term_stats_prob"])).squeeze(-1)
    got = termination_metrics(logits, tensor(arrays["term_stats_target"]).squeeze(-1))
    check(got["termination_rate"], arrays["term_stats_rate"], "rate")
    check(got["termination_f1"], arrays["term_stats_f1"], "f1")


def test_choice_among_elites_agrees(arrays: dict[str, np.ndarray]) -> None:
    p = tensor(arrays["gumbel_p"])
    exponential = tensor(arrays["gumbel_rng_exponential"])
    assert int((p.log() - exponential.log()).argmax()) == int(arrays["gumbel_idx"])
