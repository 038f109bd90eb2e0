"""What a user may get wrong at the door, and the sentence that says so: field, what came, what is allowed."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from worldloom import LatentState, create_world_model
from worldloom.core.exceptions import ConfigurationError, ShapeMismatchError
from worldloom.training import ReplayBuffer

NAMES = ["dreamerv3:ci", "tdmpc2:ci", "mlp:ci"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return create_world_model(request.param, obs_shape=(4,), action_dim=2)


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.array([["a"] * 4]), r"dtype of obs: .*<U1"),
        (None, "dtype of obs: .*NoneType"),
        ([[1.0, 2.0, 3.0, 4.0], [1.0]], "dtype of obs: .*equal rows"),
        (torch.zeros(1, 4, dtype=torch.complex64), "dtype of obs: .*complex64"),
        (np.zeros(4), "no batch axis"),
        (np.zeros((1, 5)), r"expected \['B', 4\], got \[1, 5\]"),
        (np.full((1, 4), np.inf), "NaN or infinite"),
    ],
)
def test_wrong_observations_are_described(model: Any, obs: Any, words: str) -> None:
    with pytest.raises(ShapeMismatchError, match=words):
        model.encode(obs)


def test_wrong_horizons_and_actions_are_described(model: Any) -> None:
    state = model.encode(np.zeros((3, 4)))
    with pytest.raises(ConfigurationError, match="horizon must be >= 1, got 0"):
        model.imagine(state, lambda s: torch.zeros(3, 2), horizon=0)
    with pytest.raises(ShapeMismatchError, match="action_dim=2"):
        model.imagine(state, lambda s: torch.zeros(3, 5))
    with pytest.raises(ShapeMismatchError, match=r"got \[0, 3, 2\]"):
        model.imagine(state, torch.zeros(0, 3, 2))
    with pytest.raises(ShapeMismatchError, match="dtype of action"):
        model.predict(state, None)


def test_what_numpy_and_lists_hold_is_taken(model: Any) -> None:
    assert model.encode([[1, 2, 3, 4]]).batch_size == 1
    assert model.encode(np.zeros((2, 4), np.float64)).features.dtype == torch.float32
    assert model.predict(model.encode(np.zeros((1, 4))), [[0, 1]]).batch_size == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs": np.array([["a"] * 2] * 3)}, "dtype of obs of an episode: expected numbers"),
        ({"obs": [[1, 2], [1], [1, 2]]}, "entries of different shapes"),
        ({"rewards": [None] * 3}, "dtype of rewards"),
        ({"actions": np.zeros((4, 1))}, r"actions of an episode with 3 rewards: expected \(3, 1\), got \(4, 1\)"),
    ],
)
def test_wrong_episodes_are_described(change: dict[str, Any], words: str) -> None:
    episode = {"obs": np.zeros((3, 2)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3)} | change
    with pytest.raises(ShapeMismatchError, match=words):
        ReplayBuffer(10, (2,), 1).add_episode(**episode)


@pytest.mark.parametrize("sizes", [(0, (2,), 1), ("100", (2,), 1), (10, (), 1), (10, (2,), 0), (10, (0,), 1), (10, (2,), None)])
def test_wrong_sizes_of_a_buffer_are_shown_as_they_came(sizes: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"capacity={sizes[0]!r}")):
        ReplayBuffer(*sizes)


def test_numbers_that_fit_are_taken_and_things_show_what_they_hold(model: Any) -> None:
    buffer = ReplayBuffer(1e3, 4, np.int64(2))  # type: ignore[arg-type]
    assert (buffer.capacity, buffer.obs_shape, buffer.action_dim) == (1000, (4,), 2)
    assert repr(buffer) == "<ReplayBuffer: 0 of 1000 transitions in 0 episodes, obs (4,) float32, action_dim 2>"
    assert repr(LatentState(torch.zeros(2, 3))) == "<LatentState deterministic: deterministic [2, 3]>"
    shown = repr(model.imagine(model.encode(np.zeros((3, 4))), np.zeros((5, 3, 2))))
    assert shown.startswith("<Trajectory: 6 states, actions [5, 3, 2], rewards [5, 3, 1]")
