"""The public DreamerV3 model; B windows of T steps."""

from typing import Any

import pytest
import torch

from worldloom import create_world_model
from worldloom.algorithms.registry import make_agent_config, trained_config
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec, EnvSpec

B = 4
T = 5
ENV = EnvSpec(name="toy:x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})


def build(goes_on: float, **changes: Any) -> Any:
    """A model whose continuation head says ``goes_on`` everywhere."""
    torch.manual_seed(0)
    model: Any = create_world_model("dreamerv3:ci", obs_shape=(3,), action_dim=2, **changes)
    *_, weight, bias = model.net.con.parameters()
    torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(bias, torch.logit(torch.tensor(goes_on, dtype=torch.float64)).item())
    *_, weight, bias = model.net.rew.parameters()
    torch.nn.init.normal_(weight)
    return model


def of_run(**settings: Any) -> dict[str, Any]:
    config: Any = trained_config(make_agent_config("dreamerv3:ci", settings), ENV, "cpu")
    return {"discount": config.discount, "continue_scale": config.continue_scale}


def test_the_model_of_a_run_knows_which_discount_its_head_holds() -> None:
    assert of_run() == {"discount": 1 - 1 / 333, "continue_scale": 1 - 1 / 333}
    assert of_run(horizon=20) == {"discount": 0.95, "continue_scale": 0.95}
    assert of_run(horizon=20, learn_discount=False) == {"discount": 0.95, "continue_scale": 1.0}
    with pytest.raises(ConfigurationError, match="horizon must be >= 2"):
        of_run(horizon=1)


@torch.no_grad()
def test_going_on_is_a_probability_and_values_discount_once() -> None:
    model = build(0.95, **of_run(horizon=20))
    state = model.encode(torch.rand(B, 3))
    assert torch.allclose(model.decode(state)["continue"], torch.ones(B, 1))
    dreamt = model.imagine(state, torch.zeros(T, B, 2), deterministic=True)
    assert torch.allclose(dreamt.continues, torch.ones(T, B, 1))
    assert dreamt.rewards.abs().min() > 0
    powers = 0.95 ** torch.arange(T).view(T, 1, 1)
    assert torch.allclose(dreamt.values[0], (dreamt.rewards * powers).sum(0), atol=1e-6)
    half = build(0.475, **of_run(horizon=20))
    assert torch.allclose(half.decode(state)["continue"], torch.full((B, 1), 0.5))
    above = build(0.99, **of_run(horizon=20)).decode(state)["continue"]
    assert torch.equal(above, torch.ones(B, 1))


@pytest.mark.parametrize("is_seen", [False, True])
def test_training_goes_on_towards_the_same_target(is_seen: bool) -> None:
    model = build(0.95, **of_run(horizon=20))
    batch = {
        "obs": torch.rand(B, T, 3),
        "actions": torch.rand(B, T, 2),
        "rewards": torch.rand(B, T),
        "continues": torch.ones(B, T),
    }
    batch |= {"last_obs": torch.rand(B, 3)} if is_seen else {}
    *_, bias = model.net.con.parameters()
    slope = torch.autograd.grad(model.compute_loss(batch)["continue"], bias)[0]
    assert abs(slope.item()) < 1e-6
