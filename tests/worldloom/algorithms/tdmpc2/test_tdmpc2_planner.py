"""Batched planning equals single plans, and the shortcuts of the planner equal the plain
description.

In float64, because a rounding error may exchange two elites of almost equal value, and everything
behind them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from worldloom.algorithms.registry import make_agent_config
from worldloom.algorithms.tdmpc2.agent import make_policy
from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.draws import PlanDraws, PlanShape
from worldloom.algorithms.tdmpc2.export import PlannerStep
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.planner import Plan, PlanIteration, PlannerSettings, plan
from worldloom.core.specs import ArraySpec, EnvSpec

SETTINGS = PlannerSettings(min_std=0.05, max_std=2.0, temperature=0.5)
DISCOUNT = 0.97


def make_model(*, tasks: int = 1, episodic: bool = False) -> TDMPC2Networks:
    model = TDMPC2Networks(
        Architecture(
            obs={"obs": ArraySpec((3,))},
            action_dim=2,
            latent_dim=16,
            encoder_dim=16,
            mlp_dim=16,
            num_q=4,
            num_bins=11,
            num_tasks=tasks,
            task_dim=4 if tasks > 1 else 0,
            is_episodic=episodic,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model.double()


def shape(policy_samples: int = 3) -> PlanShape:
    return PlanShape(
        horizon=3,
        policy_samples=policy_samples,
        samples=10,
        elites=4,
        iterations=3,
        action_dim=2,
        num_q=4,
    )


def make_inputs(envs: int, **keywords: Any) -> tuple[Tensor, Tensor, PlanDraws]:
    generator = torch.Generator().manual_seed(1)
    mean = torch.rand(envs, 3, 2, generator=generator).double() - 0.5
    drawn = PlanDraws.draw(envs, shape(**keywords), generator)
    parts = (getattr(drawn, f.name) for f in fields(drawn))
    double = (
        part.double() if part is not None and part.is_floating_point() else part for part in parts
    )
    return torch.randn(envs, 3, generator=generator), mean, PlanDraws(*double)


@pytest.mark.parametrize("kind", ["plain", "episodic", "tasks"])
@pytest.mark.parametrize("explore", [True, False])
def test_n_plans_in_one_call_equal_n_single_plans(kind: str, explore: bool) -> None:
    envs = 5
    model = make_model(tasks=3 if kind == "tasks" else 1, episodic=kind == "episodic")
    obs, mean, draws = make_inputs(envs)
    index = torch.arange(envs) % 3 if kind == "tasks" else None
    with torch.no_grad():
        if isinstance(model.action_masks, Tensor):
            model.action_masks[1, 1] = 0
        task = model.embed(index)
        mask = model.mask(index)
        z = model.encode({"obs": obs}, task)
    discount = torch.linspace(0.9, 0.99, envs).double()

    def run(rows: slice) -> Plan:
        part = None if task is None else task[rows]
        masked = None if mask is None else mask[rows]
        own = draws.rows(rows.start, rows.stop)
        return plan(
            model,
            z[rows],
            mean[rows],
            own,
            SETTINGS,
            discount[rows],
            explore=explore,
            task=part,
            mask=masked,
        )

    together = run(slice(0, envs))
    for i in range(envs):
        alone = run(slice(i, i + 1))
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[i : i + 1], single, rtol=1e-7, atol=1e-9)


def naive_value(
    model: TDMPC2Networks, z: Tensor, actions: Tensor, noise: Tensor, pair: Tensor
) -> Tensor:
    """Value [S] of sequences [H, S, A] from one latent [L], written as the paper describes it."""
    z = z.expand(actions.shape[1], -1)
    total = z.new_zeros(len(z))
    weight = 1.0
    ended = z.new_zeros(len(z))
    for action in actions:
        total = total + weight * (1 - ended) * model.reward(z, action)
        z = model.next_latent(z, action)
        weight = weight * DISCOUNT
        if model.termination is not None:
            ended = torch.clamp(ended + (model.termination_logits(z).sigmoid() > 0.5), max=1)
    q = model.bins.mean(model.critic_logits(z, model.policy(z, noise).action))[pair].mean(0)
    return total + weight * (1 - ended) * q


@torch.no_grad()
@pytest.mark.parametrize("policy_samples", [0, 3])
@pytest.mark.parametrize("episodic", [True, False])
def test_shortcuts_equal_the_plain_description(policy_samples: int, episodic: bool) -> None:
    model = make_model(episodic=episodic)
    obs, mean, draws = make_inputs(2, policy_samples=policy_samples)
    z = model.encode({"obs": obs})
    seen: list[PlanIteration] = []
    plan(model, z, mean, draws, SETTINGS, DISCOUNT, explore=True, watch=seen.append)
    for env in range(2):
        current = mean[env]
        std = torch.full_like(mean[env], 2.0)
        state = z[env].expand(policy_samples, -1)
        own = []
        for t in range(3):
            own.append(model.policy(state, draws.policy_noise[env, t]).action)
            state = model.next_latent(state, own[-1])
        for i, found in enumerate(seen):
            sampled = (current[:, None] + std[:, None] * draws.sample_noise[env, i]).clamp(-1, 1)
            actions = torch.cat([torch.stack(own), sampled], 1)
            torch.testing.assert_close(found.actions[env], actions, rtol=1e-7, atol=1e-9)
            value = naive_value(
                model, z[env], actions, draws.terminal_noise[env, i], draws.pairs[env, i]
            )
            torch.testing.assert_close(found.value[env], value, rtol=1e-7, atol=1e-9)
            best = value.topk(4).indices
            weight = torch.softmax(0.5 * value[best], 0)
            chosen = actions[:, best]
            current = (weight[:, None] * chosen).sum(1)
            std = (weight[:, None] * (chosen - current[:, None]) ** 2).sum(1).sqrt().clamp(0.05, 2)
            torch.testing.assert_close(found.mean[env], current, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(found.std[env], std, rtol=1e-7, atol=1e-9)


def test_a_value_that_is_not_a_number_counts_as_zero() -> None:
    model = make_model()
    obs, mean, draws = make_inputs(1)
    with torch.no_grad():
        model.reward_head[2].bias.fill_(float("nan"))
        z = model.encode({"obs": obs})
    seen: list[PlanIteration] = []
    result = plan(model, z, mean, draws, SETTINGS, DISCOUNT, explore=True, watch=seen.append)
    assert all(torch.equal(found.value, torch.zeros(1, 10).double()) for found in seen)
    assert result.action.isfinite().all()


def test_a_planner_without_policy_samples_is_exported_as_any() -> None:
    env = EnvSpec(name="toy:x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
    config: Any = make_agent_config("tdmpc2:ci", {"num_policy_samples": 0})
    step = PlannerStep(make_policy(config, env))
    carry = {name: torch.zeros(2, *spec.shape) for name, spec in step.carry.items()}
    uniform = torch.full((2, step.uniform), 0.5)
    normal = torch.randn(2, step.normal)
    first = torch.ones(2, dtype=torch.bool)
    action, after = step({"obs": torch.zeros(2, 3)}, carry, first, uniform, normal)
    assert action["action"].shape == (2, 2)
    assert after["prev_mean"].shape == carry["prev_mean"].shape
