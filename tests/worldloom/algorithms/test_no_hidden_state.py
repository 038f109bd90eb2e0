"""What a model computes follows from its weights now: no call leaves anything behind in a model
that others share.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldloom import create_world_model

NAMES = ["dreamerv3:ci", "tdmpc2:ci", "mlp:ci"]


def build(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create_world_model(name, obs_shape=(3,), action_dim=2).eval()


@torch.no_grad()
def dream(model: Any, policy: Callable[[Any], torch.Tensor] | None = None) -> torch.Tensor:
    state = model.encode(torch.ones(2, 3), deterministic=True)
    actions = policy or torch.full((3, 2, 2), 0.5)
    return model.imagine(state, actions, deterministic=True, horizon=3).to_features_tensor()


@pytest.mark.parametrize("name", NAMES)
def test_threads_that_imagine_at_once_leave_no_weights_behind(name: str) -> None:
    model = build(name)
    other = build(name, seed=1)
    first_inside, second_inside, first_left = (threading.Event() for _ in range(3))
    results = []

    def first() -> None:
        def act(state: Any) -> torch.Tensor:
            first_inside.set()
            assert second_inside.wait(30)
            return torch.full((2, 2), 0.5)

        results.append(dream(model, act))
        first_left.set()

    def second() -> None:
        def act(state: Any) -> torch.Tensor:
            second_inside.set()
            assert first_left.wait(30)
            return torch.full((2, 2), 0.5)

        results.append(dream(model, act))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert first_inside.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert torch.equal(*results)
    assert torch.equal(results[0], dream(model))
    model.load_state_dict(other.state_dict())
    assert torch.equal(dream(model), dream(other))


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_change_weights_is_seen_by_the_next_call(name: str) -> None:
    model = build(name)
    other = build(name, seed=1)
    before = dream(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data.add_(0.01)
    changed = dream(model)
    assert not torch.equal(before, changed)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(dream(clone), changed)
        clone.load_state_dict(other.state_dict())
        assert torch.equal(dream(clone), dream(other))
    assert torch.equal(dream(model), changed)
    with torch.no_grad():
        for mine, new in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_(new)
    assert torch.equal(dream(model.to("cpu")), dream(other))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_a_model_that_recomputes_activations_trains_itself(name: str) -> None:
    model = build(name)
    model.enable_gradient_checkpointing()
    clone = copy.deepcopy(model)
    batch = {
        "obs": torch.rand(2, 4, 3),
        "actions": torch.rand(2, 4, 2),
        "rewards": torch.rand(2, 4),
        "continues": torch.ones(2, 4),
    }
    clone.compute_loss(batch)["loss"].backward()
    assert any(p.grad is not None for p in clone.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_policy_that_leaves_by_an_error_leaves_no_weights_behind() -> None:
    model = build("dreamerv3:ci")
    other = build("dreamerv3:ci", seed=1)

    def fail(state: Any) -> torch.Tensor:
        raise ValueError("no action")

    with pytest.raises(ValueError, match="no action"):
        dream(model, fail)
    model.load_state_dict(other.state_dict())
    assert torch.equal(dream(model), dream(other))
