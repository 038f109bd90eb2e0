"""The public TD-MPC2 model; B windows of T steps, O numbers observed, A action components."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldloom import create_world_model
from worldloom.training.data import ReplayBuffer

B = 4
T = 5
O = 3
A = 2


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"obs_shape": (O,), "action_dim": A, "horizon": 2}
    model: Any = create_world_model("tdmpc2:ci", **(fields | changes))
    for head in (model.net.reward_head, model.net.critics, model.target):
        torch.nn.init.normal_(head[-1].weight, std=0.1)  # no loss reads its target from zeros
    return model


def batch(**changes: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "obs": torch.rand(B, T, O, generator=g),
        "actions": torch.rand(B, T, A, generator=g),
        "rewards": torch.rand(B, T, generator=g),
        "continues": torch.ones(B, T),
        "last_obs": torch.rand(B, O, generator=g),
        **changes,
    }


def losses(model: Any, data: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(2)
    found: dict[str, Tensor] = model.compute_loss(data)
    return found


def with_last(values: Tensor, last: float) -> Tensor:
    """The same values with another one of each window's last action."""
    changed = values.clone()
    changed[:, -1] = last
    return changed


UNSEEN = {"last_obs_mask": torch.zeros(B, dtype=torch.bool)}


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("is_there", [False, True])
def test_an_end_without_an_observation_is_learnt(steps: int, is_there: bool) -> None:
    model = build(episodic=True)
    data = {name: v[:, :steps] if name != "last_obs" else v for name, v in batch().items()}
    data |= UNSEEN
    if not is_there:
        del data["last_obs"], data["last_obs_mask"]
    went_on = losses(model, data)
    ended = losses(model, data | {"continues": with_last(data["continues"], 0.0)})
    assert not torch.equal(went_on["continue"], ended["continue"])
    assert not torch.equal(went_on["td"], ended["td"])
    assert torch.equal(went_on["consistency"], ended["consistency"])


def test_the_value_of_an_unseen_end_is_the_reward_and_an_unseen_cut_has_none() -> None:
    model = build(episodic=True)
    for cont, is_read in ((0.0, True), (1.0, False)):
        data = batch(**UNSEEN)
        data["continues"] = with_last(data["continues"], cont)
        more = data | {"rewards": with_last(data["rewards"], 50.0)}
        assert torch.equal(losses(model, data)["td"], losses(model, more)["td"]) != is_read
        assert not torch.equal(losses(model, data)["reward"], losses(model, more)["reward"])


def test_what_stands_for_an_unseen_observation_does_not_matter() -> None:
    model = build(episodic=True)
    ends = with_last(torch.ones(B, T), 0.0)
    ends[0] = 1.0
    data = batch(**UNSEEN, continues=ends)
    other = data | {"last_obs": torch.full((B, O), 7.0)}
    first, second = losses(model, data), losses(model, other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_unseen_observation_costs_the_other_windows_nothing() -> None:
    model = build()
    mask = torch.tensor([True, False, True, True])
    data = batch(last_obs_mask=mask)
    other = batch(last_obs_mask=mask)
    other["last_obs"][0] += 1
    assert not torch.equal(losses(model, data)["consistency"], losses(model, other)["consistency"])
    assert not torch.equal(losses(model, data)["td"], losses(model, other)["td"])


def test_ends_of_episodes_without_a_final_observation_reach_the_termination_head() -> None:
    model = build(episodic=True)
    buffer = ReplayBuffer(200, (O,), A, seed=0)
    place = np.arange(100) % 5  # episodes of five steps, one after the other
    buffer.add_episode(np.eye(5)[place, :O], np.zeros((100, A)), np.zeros(100), place == 4)
    data = buffer.sample(64, 2)  # one window in four ends
    bias = model.net.termination[-1].bias
    torch.nn.init.constant_(bias, -10.0)  # no end is expected anywhere
    slope = torch.autograd.grad(losses(model, data)["loss"], bias)[0]
    share = (data["continues"] == 0).float().mean()
    assert 0.05 < share < 0.25
    assert slope.item() == pytest.approx(-share.item(), abs=1e-3)


def test_the_decoder_of_several_tasks_learns_from_the_latents_of_each() -> None:
    model = build(num_tasks=3, use_decoder=True)
    tasks = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        model.net.task_emb.mul_(20)
        found = losses(model, batch() | {"task_id": tasks})["reconstruction"]
        rows = range(B)
        alone = [
            losses(model, {n: v[r : r + 1] for n, v in batch().items()} | {"task_id": tasks[r]})
            for r in rows
        ]
    assert found == pytest.approx(sum(one["reconstruction"].item() for one in alone) / B)


def test_rows_of_several_tasks_can_be_taken_apart() -> None:
    model = build(num_tasks=3)
    with torch.no_grad():
        model.net.task_emb.mul_(20)
    state = model.encode(torch.rand(3, O), task_id=torch.tensor([0, 1, 2]))
    action = torch.zeros(3, A)
    order = [2, 0, 1]
    taken = model.predict_q(state[order], action)
    assert torch.allclose(taken, model.predict_q(state, action)[:, order], atol=1e-5)


def test_the_policy_s_loss_trains_the_policy_alone() -> None:
    model = build(num_tasks=3)
    data = batch() | {"task_id": torch.tensor([0, 1, 2, 0])}
    trained = {name: p for name, p in model.net.named_parameters() if not name.startswith("pi.")}

    def gradients() -> list[Tensor]:
        found = torch.autograd.grad(losses(model, data)["loss"], list(trained.values()))
        return list(found)

    before = gradients()
    with torch.no_grad():
        model.scale.mul_(1e-3)  # the policy's loss follows values a thousand times as much
    after = gradients()
    assert [n for n, a, b in zip(trained, before, after, strict=True) if not a.equal(b)] == []
