"""An update whose products are in bfloat16: every gradient points where the float32 one does, and
no weight is cast more than once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worldloom.algorithms.dreamerv3 import dreamer_cases
from tests.worldloom.algorithms.tdmpc2 import tiny as tdmpc2_cases
from worldloom.algorithms.dreamerv3.spec import PRESETS
from worldloom.algorithms.registry import make_agent, make_agent_config

SHORT = {"batch_size": 4, "batch_length": 8, "imagine_length": 4}
CASES = ["dreamerv3 vector", "dreamerv3 image HWC", "tdmpc2"]
NEAR = 0.9
"""Cosine between the gradients of one tensor."""


def build(case: str, precision: str) -> tuple[Any, Any]:
    """An agent that is no longer as it was drawn, and a batch."""
    name, _, obs = case.partition(" ")
    if name == "tdmpc2":
        env = tdmpc2_cases.make_env()
        agent = make_agent(make_agent_config("tdmpc2:ci", {"precision": precision}), env, seed=1)
        batch = tdmpc2_cases.random_batch(env, agent.config)
        for _ in range(3):
            agent.train_step(batch)
        return agent, batch
    env = dreamer_cases.env_of(obs, "Box")
    settings = make_agent_config("dreamerv3:ci", {**SHORT, "precision": precision})
    assert type(settings) is type(PRESETS["ci"]())
    agent = make_agent(settings, env, seed=1)
    return agent, dreamer_cases.random_batch(agent, env)


def gradients(case: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of one update, in the order in which they are asked for."""
    agent, batch = build(case, precision)
    found: list[Tensor] = []
    differentiate = torch.autograd.grad

    def keep(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        result = differentiate(*args, **kwargs)
        found.extend(g.detach().clone() for g in result)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", keep)
        agent.train_step(batch)
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_points_where_the_float32_one_does(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, half = (gradients(case, p, monkeypatch) for p in ("float32", "bfloat16"))
    assert len(single) == len(half) > 40
    compared = 0
    for one, other in zip(single, half, strict=True):
        assert other.dtype == torch.float32
        if float(one.norm()) == 0:
            continue
        compared += 1
        cosine = torch.dot(one.flatten(), other.flatten()) / (one.norm() * other.norm())
        assert float(cosine) > NEAR, one.shape
        assert 0.7 < float(other.norm() / one.norm()) < 1.4, one.shape
    assert compared > len(single) / 2


class WeightCasts(TorchDispatchMode):
    """Counts how often each weight becomes bfloat16."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.known = {weight.data_ptr(): tuple(weight.shape) for weight in weights}
        self.casts: Counter[tuple[int, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        wanted = (kwargs or {}).get("dtype")
        if func.name() == "aten::_to_copy" and wanted is torch.bfloat16:
            place = (args[0].data_ptr(), tuple(args[0].shape))
            if self.known.get(place[0]) == place[1]:
                self.casts[place] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES[:2])
def test_no_weight_is_cast_twice_in_an_update(case: str) -> None:
    agent, batch = build(case, "bfloat16")
    agent.train_step(batch)
    weights = list(agent.all_networks.trained().values())
    with WeightCasts(weights) as counted:
        agent.train_step(batch)
    assert len(counted.casts) > 20
    twice = {place[1]: count for place, count in counted.casts.items() if count > 1}
    assert not twice
