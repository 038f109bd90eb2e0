"""Agent states in which one part is of another kind or shape: refused with one documented error,
never broadcast into place.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec, EnvSpec

ENV = EnvSpec(
    name="toy:point",
    obs={"obs": ArraySpec((4,), "float32")},
    action={"action": ArraySpec((2,), "float32")},
)
OTHERS: list[Any] = [None, "x", -1, [], torch.zeros(3, 5, 7), torch.zeros((), dtype=torch.int64)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        yield from places(part, (*path, key))


def held(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], tuple(rest), new)}
    return [replaced(v, tuple(rest), new) if i == key else v for i, v in enumerate(value)]


@pytest.mark.parametrize("name", ["tdmpc2:ci", "dreamerv3:ci", "r2dreamer:ci", "mlp:ci"])
def test_a_part_of_another_kind_or_shape_is_refused(name: str) -> None:
    agent = make_agent(make_agent_config(name, {}), ENV, device="cpu", seed=0)
    good = agent.state_dict()
    agent.load_state_dict(good)
    found = list(places(good))
    step = max(1, len(found) // 60)
    taken = []
    for path in found[::step]:
        part = held(good, path)
        for other in OTHERS:
            if getattr(other, "shape", None) == getattr(part, "shape", ()):
                continue
            try:
                agent.load_state_dict(replaced(good, path, other))
            except CheckpointError:
                continue
            taken.append((path, str(other)[:30]))
    assert not taken


def test_moments_of_adam_are_compared_with_their_parameters() -> None:
    agent = make_agent(make_agent_config("tdmpc2:ci", {}), ENV, device="cpu", seed=0)
    for optimizer, named in (
        (agent.updater.model_optimizer, agent.updater.model_parameters),
        (agent.updater.policy_optimizer, agent.updater.policy_parameters),
    ):
        for parameter in named.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    good = agent.state_dict()
    moments = good["updater"]["model_optimizer"]
    name = next(name for name, of in moments.items() if of["exp_avg"].ndim == 2)
    for key, other, words in (
        ("exp_avg_sq", torch.zeros(2), "exp_avg_sq"),
        ("exp_avg", torch.zeros(()), "exp_avg"),
        ("step", torch.zeros(2), "step"),
        ("exp_avg", 3, "another kind"),
    ):
        wrong = replaced(good, ("updater", "model_optimizer", name, key), other)
        with pytest.raises(CheckpointError, match=words):
            agent.load_state_dict(wrong)
    without = {key: value for key, value in moments[name].items() if key != "step"}
    with pytest.raises(CheckpointError, match="step"):
        agent.load_state_dict(replaced(good, ("updater", "model_optimizer", name), without))
