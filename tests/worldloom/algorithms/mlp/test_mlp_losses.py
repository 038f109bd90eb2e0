"""The losses of the agent's update against loops in NumPy, and what reaches which weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worldloom.algorithms.mlp.tiny import VECTOR, make_env, random_windows, tiny_agent
from worldloom.algorithms.mlp.agent import MLPAgent
from worldloom.algorithms.mlp.losses import (
    LossScales,
    actor_loss,
    imagine,
    model_loss,
    real_critic_loss,
)
from worldloom.algorithms.mlp.model import disagreement, legal
from worldloom.core.specs import ArraySpec

SCALES = LossScales(
    reconstruction=1.0,
    prediction=0.7,
    dynamics=2.0,
    reward=0.5,
    done=3.0,
    discount=0.9,
    lam=0.8,
    uncertainty_bonus=0.0,
    straight_through=0.0,
)


def dense(layers: Any, x: np.ndarray) -> np.ndarray:
    """A ReLU network from (weight, bias) pairs."""
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    return x @ layers[-1][0].T + layers[-1][1]


def layers_of(module: Any, member: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [p.detach().double().numpy() for p in module.parameters()]
    if member is not None:
        pairs = [p[member] for p in pairs]
    return list(zip(pairs[::2], pairs[1::2], strict=True))


def test_the_model_loss_is_the_guide_s_with_the_dynamics_unrolled() -> None:
    agent = tiny_agent()
    agent.train_step(random_windows(agent, 5))  # from here on there are units
    batch = agent.window_batch(random_windows(agent, is_first=[(0, 2), (3, 1)], ended=[(0, 1)]))
    found = model_loss(agent.networks.model, batch, SCALES)
    model = agent.networks.model
    obs, action, reward, ended, live = (
        x.double().numpy()
        for x in (batch.vector, batch.action, batch.reward, batch.terminated, batch.live)
    )
    mean, std = (x.double().numpy() for x in model.obs_moments.mean_and_std())
    low, spread = (float(x) for x in model.reward_moments.mean_and_std())
    assert not np.allclose(std, 1)
    assert spread != 1
    obs = (obs - mean) / std
    latent = dense(layers_of(model.encoder), obs)
    sums = {"prediction": 0.0, "dynamics": 0.0, "reward": 0.0, "done": 0.0}
    for k in range(3):
        parts = {n: layers_of(getattr(model, n), k) for n in ("dynamics", "reward", "done")}
        for b in range(obs.shape[1]):
            z = latent[0, b]
            for t in range(len(reward)):
                z = dense(parts["dynamics"], np.concatenate([z, action[t, b]]))
                r, logit = (dense(parts[n], z)[0] for n in ("reward", "done"))
                p = 1 / (1 + np.exp(-logit))
                if live[t, b]:
                    seen = dense(layers_of(model.decoder), z)
                    sums["prediction"] += ((seen - obs[t + 1, b]) ** 2).mean()
                    sums["dynamics"] += ((z - latent[t + 1, b]) ** 2).mean()
                    sums["reward"] += (r + (low - reward[t, b]) / spread) ** 2
                    sums["done"] -= np.log(p if ended[t, b] else 1 - p)
                else:
                    z = latent[t + 1, b]
    parts = {name: value / 3 / live.size for name, value in sums.items()}
    parts["reconstruction"] = ((dense(layers_of(model.decoder), latent) - obs) ** 2).mean()
    for name, value in parts.items():
        assert float(found.metrics[f"loss/{name}"]) == pytest.approx(value, rel=1e-4), name
    total = sum(getattr(SCALES, name) * value for name, value in parts.items())
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-4)


def test_rows_of_the_next_episode_do_not_reach_the_dynamics_across_its_beginning() -> None:
    agent = tiny_agent()
    windows = random_windows(agent, is_first=[(0, 2)])

    def loss(row: int, action: float) -> float:
        windows.action["action"][0, row] = action
        batch = agent.window_batch(windows)
        return float(model_loss(agent.networks.model, batch, SCALES).total.detach())

    assert loss(1, 0.3) == loss(1, -0.9), "the action of an episode's last row is ignored"
    assert loss(2, 0.3) != loss(2, -0.9)


def test_members_begin_apart_and_stay_apart() -> None:
    agent = tiny_agent()
    batch = random_windows(agent)
    for _ in range(3):
        agent.train_step(batch)
    weight = agent.networks.model.dynamics.layers[0].weight
    assert not any(torch.equal(weight[i], weight[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    latent = torch.randn(4, agent.config.latent_dim)
    following = agent.networks.model.next(latent, torch.zeros(4, 2))
    assert (disagreement(following) > 1e-3).all()
    assert disagreement(following[:1].expand(3, -1, -1)).max() < 1e-5


def imagined(agent: MLPAgent, start: Tensor, bonus: float = 0.0) -> Any:
    uniform, normal = agent.own_draws(start.shape[1])
    return imagine(agent.networks, start, uniform, normal, replace(SCALES, uncertainty_bonus=bonus))


def test_the_bonus_adds_the_disagreement_about_each_imagined_step() -> None:
    agent = tiny_agent()
    start = torch.randn(3, 5, agent.config.latent_dim)
    state = agent.train_generator.get_state()
    plain = imagined(agent, start)
    agent.train_generator.set_state(state)
    curious = imagined(agent, start, 2.0)
    torch.testing.assert_close(plain.latent, curious.latent)
    gained = (curious.reward - plain.reward)[1:]
    out = agent.networks.actor(start.flatten(0, 1))
    agent.train_generator.set_state(state)
    uniform, normal = agent.own_draws(5)
    action = agent.networks.actor.sample(out, uniform[0], normal[0])
    everyone = agent.networks.model.next(start.flatten(0, 1), action)
    torch.testing.assert_close(gained[0], 2.0 * disagreement(everyone), rtol=1e-3, atol=1e-5)
    assert (gained > 0).all()


def test_each_member_imagines_its_own_rows() -> None:
    agent = tiny_agent()
    start = torch.randn(1, 5, agent.config.latent_dim).expand(3, -1, -1)
    dreamt = imagined(agent, start)
    steps = dreamt.latent.unflatten(1, (3, 5))
    assert torch.equal(steps[0, 0], steps[0, 1])
    assert not torch.allclose(steps[1, 0], steps[1, 1])


def test_actions_beyond_their_range_are_cut_and_still_feel_a_gradient() -> None:
    action = torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    cut = legal(action)
    assert cut.tolist() == [-1.0, 0.5, 1.0]
    cut.sum().backward()
    assert (action.grad > 0).all()  # type: ignore[operator]


def test_actor_returns_weights_and_objective_equal_a_loop() -> None:
    agent = tiny_agent()
    torch.nn.init.normal_(agent.networks.slow.out[0].weight, std=0.1)
    dreamt = imagined(agent, torch.randn(3, 5, agent.config.latent_dim))
    start_weight = torch.tensor([1.0, 0.0, 1.0] * 5)
    scale = torch.tensor(4.0)
    found = actor_loss(agent.networks, dreamt, start_weight, SCALES, scale, 0.1, 0.2)
    value = agent.networks.value(dreamt.latent, is_slow=True).detach().double().numpy()
    reward, cont, entropy = (
        x.detach().double().numpy() for x in (dreamt.reward, dreamt.cont, dreamt.entropy)
    )
    steps = len(entropy)
    returns = np.zeros((steps, 15))
    ahead = value[steps]
    for t in reversed(range(steps)):
        after = 0.2 * value[t + 1] + 0.8 * ahead
        returns[t] = ahead = reward[t + 1] + 0.9 * cont[t + 1] * after
    weight = np.ones((steps, 15)) * start_weight.numpy()
    for t in range(1, steps):
        weight[t] = weight[t - 1] * 0.9 * cont[t]
    np.testing.assert_allclose(found.returns, returns, rtol=1e-4)
    np.testing.assert_allclose(found.weight, weight, rtol=1e-4)
    squares = (dreamt.raw_mean.detach().double().numpy() ** 2).sum(-1)
    want = -(weight * (returns / 4 + 0.1 * entropy - 0.2 * squares)).mean()
    assert float(found.total.detach()) == pytest.approx(want, rel=1e-4)


def test_the_gradient_of_the_actor_is_that_of_the_expected_return_for_a_choice() -> None:
    """With one imagined step and every class drawn in turn, the score function averages to the
    exact gradient.
    """
    env = make_env(VECTOR, discrete=3)
    agent = tiny_agent(env, horizon=1, ensemble_size=1, entropy_scale=0.0)
    torch.nn.init.normal_(agent.networks.actor.head.out[0].weight, std=1.0)
    start = torch.randn(1, 1, agent.config.latent_dim)
    probs = agent.networks.actor(start[0])["action/logits"].softmax(-1)
    edges = torch.cat([torch.zeros(1), probs[0].detach().cumsum(0)])
    middles = (edges[1:] + edges[:-1]) / 2
    parameters = list(agent.networks.actor.parameters())
    ones = torch.ones(1)
    total: list[Tensor] = [torch.zeros_like(p) for p in parameters]
    exact = torch.zeros(())
    for c in range(3):
        dreamt = imagine(
            agent.networks, start, middles[c].view(1, 1, 1), torch.empty(1, 1, 0), SCALES
        )
        loss = actor_loss(agent.networks, dreamt, ones, SCALES, torch.tensor(1.0), 0.0, 0.0)
        gradients = torch.autograd.grad(loss.total, parameters)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += float(probs[0, c].detach()) * gradient
        exact = exact - probs[0, c] * loss.returns[0, 0]
    for mine, true in zip(total, torch.autograd.grad(exact, parameters), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-5)


def test_a_choice_passes_a_share_of_its_gradient_straight_through() -> None:
    """The part through the model is that of probabilities in the place of the choice."""
    env = make_env(VECTOR, discrete=3)
    agent = tiny_agent(env, horizon=1, ensemble_size=1, entropy_scale=0.0)
    torch.nn.init.normal_(agent.networks.actor.head.out[0].weight, std=1.0)
    start = torch.randn(1, 1, agent.config.latent_dim)
    parameters = list(agent.networks.actor.parameters())
    found = []
    for share in (0.25, 1.0):
        scales = replace(SCALES, straight_through=share)
        draws = (torch.full((1, 1, 1), 0.5), torch.empty(1, 1, 0))
        dreamt = imagine(agent.networks, start, *draws, scales)
        found.append(torch.autograd.grad(dreamt.reward[1].sum(), parameters))
    assert any(g.abs().sum() > 0 for g in found[0])
    for part, whole in zip(*found, strict=True):
        torch.testing.assert_close(part, 0.25 * whole)


def test_continuous_actions_learn_through_the_model_and_leave_it_alone() -> None:
    agent = tiny_agent()
    dreamt = imagined(agent, torch.randn(3, 5, agent.config.latent_dim))
    ones = torch.ones(15)
    loss = actor_loss(agent.networks, dreamt, ones, SCALES, torch.tensor(1.0), 0.0, 0.0).total
    wanted = [*agent.networks.actor.parameters(), *agent.networks.model.dynamics.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    count = len(list(agent.networks.actor.parameters()))
    assert all(g is not None and g.abs().sum() > 0 for g in found[:count])
    assert all(g is None for g in found[count:])


def test_the_critic_learns_one_step_targets_of_real_rows() -> None:
    agent = tiny_agent()
    windows = random_windows(agent, ended=[(1, 3)])
    windows.reward.fill_(1.0)
    batch = agent.window_batch(windows)
    latent = torch.randn(*batch.vector.shape[:2], agent.config.latent_dim)
    parameters = list(agent.networks.critic.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-2)
    with torch.no_grad():
        agent.networks.slow.out[0].bias[:] = 0.0
        agent.networks.slow.out[0].bias[-9] = 30.0
    ahead = float(agent.networks.value(latent[:1, :1], is_slow=True))
    for _ in range(400):
        loss = real_critic_loss(agent.networks, latent, batch, replace(SCALES, discount=0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    value = agent.networks.value(latent[:-1]).detach()
    ended = batch.terminated > 0
    assert float(value[ended]) == pytest.approx(1.0, abs=0.1)
    assert float(value[~ended].mean()) == pytest.approx(1.0 + 0.5 * ahead, rel=0.05)


def test_real_targets_have_the_bonus_that_imagined_ones_have() -> None:
    """Both teach one critic."""
    agent = tiny_agent(discount=0.5)
    torch.nn.init.normal_(agent.networks.critic.out[0].weight, std=0.1)
    batch = agent.window_batch(random_windows(agent))
    latent = torch.randn(*batch.vector.shape[:2], agent.config.latent_dim)
    following = agent.networks.model.next(latent[:-1].flatten(0, 1), batch.action.flatten(0, 1))
    doubt = disagreement(following).view(batch.reward.shape).detach()
    paid = batch._replace(reward=batch.reward + 2.0 * doubt)
    plain, curious, want = (
        float(real_critic_loss(agent.networks, latent, data, scales).detach())
        for data, scales in (
            (batch, SCALES),
            (batch, replace(SCALES, uncertainty_bonus=2.0)),
            (paid, SCALES),
        )
    )
    assert curious == pytest.approx(want, rel=1e-6)
    assert curious != pytest.approx(plain, rel=1e-4)


def test_pixels_do_not_drown_the_numbers_beside_them() -> None:
    env = make_env({"camera": ArraySpec((32, 32, 3), "uint8"), "joints": ArraySpec((2,))})
    model = tiny_agent(env).networks.model
    seen = torch.zeros(5, 2 + model.pixels)
    decoded = torch.cat([torch.full((5, 2), 3.0), torch.full((5, model.pixels), 2.0)], -1)
    assert model.recon_gap(decoded, seen).tolist() == pytest.approx([9.0 + 4.0] * 5)
