"""An update never waits for the device and its shapes depend on no data, so that it can be captured
as a CUDA graph.

On a CPU a wait is invisible; what would cause one on an accelerator is not: reading a scalar, or an
operator whose output's shape is data. The guard refuses both, in forward, backward and optimizer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of, random_batch, tiny
from worldloom.algorithms.registry import make_agent
from worldloom.testing import ContractError
from worldloom.testing.no_waiting import no_waiting


@pytest.mark.parametrize(
    ("obs", "action", "changes"),
    [
        ("two images and a vector", "Dict", {"imagine_length": 2, "batch_length": 3}),
        ("image HWC", "Discrete", {"precision": "bfloat16"}),
        ("discrete", "Box", {"replay_context": 0, "slow_target": True}),
    ],
)
def test_an_update_reads_no_scalar_and_has_no_data_dependent_shape(
    obs: str, action: str, changes: dict[str, Any]
) -> None:
    env = env_of(obs, action)
    agent = make_agent(tiny(**changes), env)
    batches = [random_batch(agent, env, seed) for seed in range(2)]
    with no_waiting() as guard:
        for batch in batches:
            out = agent.train_step(batch)
    assert guard.seen > 500
    assert float(out.nonfinite) == 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: bool(x > 0),
        torch.nonzero,
        lambda x: x.reshape(1)[x.reshape(1) > 0],
    ],
)
def test_the_guard_sees_what_would_wait(wait: Any) -> None:
    with pytest.raises(ContractError, match="waits"), no_waiting():
        wait(torch.ones(1))


def test_everything_that_an_update_changes_lives_on_the_agents_device() -> None:
    agent = make_agent(tiny(), env_of())
    agent.train_step(random_batch(agent, env_of()))
    optimizer = agent.optimizer
    state = [
        optimizer.count,
        *optimizer.mean_square,
        *optimizer.momentum,
        *agent.normalizer,
        *agent.all_networks.state_dict().values(),
    ]
    assert {tensor.device for tensor in state} == {agent.device}


def test_an_update_writes_weights_and_optimizer_state_in_place() -> None:
    """A captured graph replays on the same memory."""
    agent = make_agent(tiny(), env_of())

    def tensors() -> list[torch.Tensor]:
        nets = agent.all_networks
        optimizer = agent.optimizer
        return [
            *nets.parameters(),
            optimizer.count,
            *optimizer.mean_square,
            *optimizer.momentum,
            *agent.normalizer,
        ]

    places = [t.data_ptr() for t in tensors()]
    values = [t.clone() for t in tensors()]
    agent.train_step(random_batch(agent, env_of()))
    assert [t.data_ptr() for t in tensors()] == places
    assert (
        sum(not torch.equal(now, was) for now, was in zip(tensors(), values, strict=True))
        > len(values) // 2
    )
