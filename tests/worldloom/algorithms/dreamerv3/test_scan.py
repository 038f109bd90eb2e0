"""The fused scan equals single steps under autograd: values, gradients, resets, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.config import DreamerSizes
from worldloom.algorithms.dreamerv3.rssm import RSSM, State

SIZES = DreamerSizes(deter=16, hidden=6, stoch=3, classes=4, units=8, blocks=4)
B = 3
T = 5
E = 7
A = 2


@pytest.fixture
def rssm() -> RSSM:
    torch.manual_seed(0)
    module = RSSM(E, A, SIZES)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def inputs(draws: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    first = torch.tensor(
        [[True, False, False, True, False], [False] * 5, [False, True, False, False, True]]
    )
    return {
        "deter": torch.randn(B, SIZES.deter),
        "stoch": torch.rand(B, SIZES.latent),
        "action": (2 * torch.randn(B, T, A)),
        "tokens": torch.randn(B, T, E).requires_grad_(),
        "is_first": first,
        "draws": draws,
    }


def by_steps(rssm: RSSM, x: dict[str, Tensor]) -> list[Tensor]:
    """The slow twin: T observe steps."""
    w = rssm.cell_weights(torch.float32)
    state = State(x["deter"], x["stoch"])
    outs = []
    for t in range(T):
        keep = (~x["is_first"][:, t]).float().unsqueeze(-1)
        state, logits, classes = rssm.observe_step(
            w, state, x["action"][:, t], x["tokens"][:, t], keep, x["draws"][:, t]
        )
        outs.append((state.deter, state.stoch, logits, classes))
    return [torch.stack(parts, 1) for parts in zip(*outs, strict=True)]


def by_scan(rssm: RSSM, x: dict[str, Tensor]) -> list[Tensor]:
    w = rssm.cell_weights(torch.float32)
    return list(
        rssm.observe(
            w, State(x["deter"], x["stoch"]), x["action"], x["tokens"], x["is_first"], x["draws"]
        )
    )


@pytest.mark.parametrize("forced", [True, False])
def test_scan_equals_single_steps_with_every_gradient(rssm: RSSM, forced: bool) -> None:
    torch.manual_seed(2)
    draws = (
        torch.randint(0, SIZES.classes, (B, T, SIZES.stoch))
        if forced
        else torch.rand(B, T, SIZES.stoch)
    )
    x = inputs(draws)
    results = []
    factors = [
        torch.randn(B, T, SIZES.deter),
        torch.randn(B, T, SIZES.latent),
        torch.randn(B, T, SIZES.stoch, SIZES.classes),
    ]
    params = [p for name, p in rssm.named_parameters() if "prior" not in name]
    for run in (by_steps, by_scan):
        outs = run(rssm, x)
        loss = sum((out * factor).sum() for out, factor in zip(outs, factors, strict=False))
        results.append([*outs, *torch.autograd.grad(loss, [x["tokens"], *params])])
    names = [
        "deter",
        "stoch",
        "logits",
        "classes",
        "tokens",
        *(n for n, _ in rssm.named_parameters() if "prior" not in n),
    ]
    for name, slow, fast in zip(names, *results, strict=True):
        torch.testing.assert_close(
            fast, slow, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_nothing_before_an_episode_start_reaches_the_state_after_it(rssm: RSSM) -> None:
    draws = torch.zeros(B, T, SIZES.stoch, dtype=torch.int64)
    x = inputs(draws)
    x["is_first"][:] = False
    x["is_first"][:, 2] = True
    changed = {**x, "deter": x["deter"] + 1, "action": x["action"].clone()}
    changed["action"][:, :3] += 1
    deter = by_scan(rssm, x)[0]
    other = by_scan(rssm, changed)[0]
    assert not torch.equal(deter[:, 1], other[:, 1])
    assert torch.equal(deter[:, 2:], other[:, 2:])


def test_huge_actions_are_limited_to_one(rssm: RSSM) -> None:
    w = rssm.cell_weights(torch.float32)
    state = rssm.initial(1)
    deters = [
        rssm.core(w, state, rssm.action_input(w, torch.tensor([[a, -a]]))) for a in (1.0, 50.0)
    ]
    torch.testing.assert_close(*deters)


def test_sampled_classes_follow_the_mixed_probabilities(rssm: RSSM) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, -9.0]).repeat(20_000, 1, 1)
    _, classes = rssm.sample(
        logits, torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    )
    share = torch.bincount(classes.flatten(), minlength=4) / 20_000
    wanted = 0.99 * logits[0, 0].softmax(-1) + 0.01 / 4
    torch.testing.assert_close(share, wanted, atol=0.01, rtol=0)
