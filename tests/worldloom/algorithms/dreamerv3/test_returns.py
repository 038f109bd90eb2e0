"""Lambda-returns at both limits and at ends of episodes; replay windows as the losses read them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of, random_batch, tiny
from worldloom.algorithms.dreamerv3.context import window_batch
from worldloom.algorithms.dreamerv3.returns import lambda_return
from worldloom.algorithms.registry import make_agent
from worldloom.core.exceptions import ShapeMismatchError

REWARD = torch.tensor([[9.0, 1.0, 2.0, 4.0]])
VALUE = torch.tensor([[0.0, 10.0, 20.0, 30.0]])
ONES = torch.ones(1, 4)


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo() -> None:
    one_step = lambda_return(REWARD, ONES, 0 * ONES, VALUE, VALUE[:, -1], discount=0.5)
    assert one_step.tolist() == [[1 + 5, 2 + 10, 4 + 15]]
    whole = lambda_return(REWARD, ONES, ONES, VALUE, VALUE[:, -1], discount=0.5)
    assert whole.tolist() == [[1 + 0.5 * (2 + 0.5 * 19), 2 + 0.5 * 19, 4 + 15]]


def test_nothing_after_a_termination_counts() -> None:
    cont = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    returns = lambda_return(REWARD, cont, ONES, VALUE, VALUE[:, -1], discount=1.0)
    assert returns.tolist() == [[1 + 2, 2, 34]]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="lambda_return"):
        lambda_return(REWARD, ONES[:, :3], ONES, VALUE, VALUE[:, -1], discount=1.0)


def test_window_shifts_actions_by_one_and_infers_the_end_before_a_new_episode() -> None:
    env = env_of("vector", "Box")
    agent = make_agent(tiny(), env)
    batch = random_batch(agent, env)
    silent = replace(batch, terminated=torch.zeros_like(batch.terminated))
    window = window_batch(silent, agent.all_networks.model, 1)
    assert torch.equal(window.action, batch.action["action"][:, :-1])
    assert torch.equal(window.reward, batch.reward[:, 1:])
    assert window.is_last.int().tolist() == [[0, 1, 0, 0, 0, 0]] * 2
    assert not window.terminated.any()
    assert window.is_first.int().tolist() == [[0, 0, 1, 0, 0, 0]] * 2


def test_window_without_context_begins_like_an_episode() -> None:
    env = env_of("vector", "Box")
    agent = make_agent(tiny(replay_context=0), env)
    window = window_batch(random_batch(agent, env), agent.all_networks.model, 0)
    assert window.is_first[:, 0].all()
    assert window.reward.shape == (2, 6)
    assert not window.start.deter.any()
