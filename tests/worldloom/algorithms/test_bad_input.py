"""What a user may get wrong at the door, and the sentence that says so: field, what came, what is
allowed.
"""

import re
from typing import Any

import numpy as np
import pytest
import torch

from worldloom import LatentState, create_world_model
from worldloom.core.exceptions import ConfigurationError, ShapeMismatchError, StateError
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
    with pytest.raises(ConfigurationError, match="horizon must be an integer >= 1, got 0"):
        model.imagine(state, lambda s: torch.zeros(3, 2), horizon=0)
    with pytest.raises(ShapeMismatchError, match="action_dim=2"):
        model.imagine(state, lambda s: torch.zeros(3, 5))
    with pytest.raises(ShapeMismatchError, match=r"got \[0, 3, 2\]"):
        model.imagine(state, torch.zeros(0, 3, 2))
    with pytest.raises(ShapeMismatchError, match="dtype of action"):
        model.predict(state, None)


def test_what_numpy_and_lists_hold_is_taken(model: Any) -> None:
    frozen = np.zeros((6, 4))
    frozen.flags.writeable = False
    for obs in (
        frozen,
        np.zeros((6, 8))[::-1, ::-2],
        torch.zeros(4, 6).T,
        np.zeros((6, 4), np.uint16),
        torch.zeros(6, 4).half(),
    ):
        assert model.encode(obs).batch_size == 6
    assert model.encode([[1, 2, 3, 4]]).batch_size == 1
    assert model.encode(np.zeros((2, 4), np.float64)).features.dtype == torch.float32
    assert model.predict(model.encode(np.zeros((1, 4))), [[0, 1]]).batch_size == 1


def test_states_and_counts_that_do_not_fit_are_described(model: Any) -> None:
    state = model.encode(np.zeros((3, 4)))
    action = torch.zeros(3, 2)
    with pytest.raises(
        ConfigurationError, match=r"horizon must be 7, the number of actions, or be left out, got 3"
    ):
        model.imagine(state, torch.zeros(7, 3, 2), horizon=3)
    assert model.imagine(state, torch.zeros(7, 3, 2), horizon=7).horizon == 7
    with pytest.raises(ConfigurationError, match=r"horizon must be an integer >= 1, got 2\.5"):
        model.imagine(state, lambda s: action, horizon=2.5)
    with pytest.raises(
        ShapeMismatchError, match=r"rows and steps: expected at least one of each, got \[0, 4\]"
    ):
        model.encode(torch.zeros(0, 4))
    with pytest.raises(
        ShapeMismatchError,
        match=r"keep the batch axis with state\[0:1\]: expected \['B', \d+\], got \[\d+\]",
    ):
        model.predict(state[0], torch.zeros(1, 2))
    with pytest.raises(ShapeMismatchError, match=r"take one step, state\[t\]"):
        model.predict(LatentState.stack([state, state]), action)
    with pytest.raises(
        ShapeMismatchError, match=r"action_dim=2.*: expected \[3, 2\], got \[5, 2\]"
    ):
        model.predict(state, torch.zeros(5, 2))
    with pytest.raises(ShapeMismatchError, match="dtype of action"):
        model.predict(state, torch.zeros(3, 2, dtype=torch.complex64))
    with pytest.raises(StateError, match="must be a LatentState"):
        model.predict(state.features, action)
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(ConfigurationError, match="batch_size must be an integer >= 1"):
            model.initial_state(wrong)
    double = LatentState(
        deterministic=None if state.deterministic is None else state.deterministic.double(),
        stochastic=None if state.stochastic is None else state.stochastic.double(),
        latent_type=state.latent_type,
    )
    assert model.predict(double, action).features.dtype == torch.float32


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_weights_of_another_dtype_are_refused_with_the_way_out(model: Any, convert: str) -> None:
    before = [p.dtype for p in model.parameters()]
    with pytest.raises(
        ConfigurationError,
        match=r"weights of a world model must be float32, got \w+; .*dtype='bfloat16'",
    ):
        getattr(model, convert)()
    with pytest.raises(ConfigurationError, match="must be float32"):
        torch.nn.Sequential(model).to(torch.float16)
    assert [p.dtype for p in model.parameters()] == before
    assert model.to("cpu").float().encode(np.zeros((1, 4))).batch_size == 1
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ConfigurationError, match="leave torch's default dtype at float32"):
            create_world_model("mlp:ci")
    finally:
        torch.set_default_dtype(torch.float32)


def test_first_rows_and_tasks_of_the_wrong_kind_are_described() -> None:
    dreamer = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2)
    state = dreamer.encode(np.zeros((3, 4)))
    with pytest.raises(ShapeMismatchError, match=r"is_first: expected \[3\], got \[2\]"):
        dreamer.observe(state, np.zeros((3, 2)), np.zeros((3, 4)), is_first=[True, False])
    tasks = create_world_model("tdmpc2:ci", obs_shape=(4,), action_dim=2, num_tasks=3)
    for wrong, words in (
        (0.7, "an integer, or 3 of them"),
        ([0, 1], "an integer, or 3"),
        (True, "an integer"),
        (3, r"0\.\.2"),
    ):
        with pytest.raises(ShapeMismatchError, match=f"task_id: expected {words}"):
            tasks.encode(np.zeros((3, 4)), task_id=wrong)
    z = tasks.encode(np.zeros((3, 4)), task_id=[0, 1, 2])
    with pytest.raises(
        ShapeMismatchError, match=r"previous_mean: expected \[3, 3, 2\], got \[1, 3, 2\]"
    ):
        tasks.plan(z, torch.zeros(1, 3, 2))
    with pytest.raises(ConfigurationError, match="iterations must be an integer >= 1, got 0"):
        tasks.plan(z, iterations=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs": np.array([["a"] * 2] * 3)}, "dtype of obs of an episode: expected numbers"),
        ({"obs": [[1, 2], [1], [1, 2]]}, "entries of different shapes"),
        ({"rewards": [None] * 3}, "dtype of rewards"),
        (
            {"actions": np.zeros((4, 1))},
            r"actions of an episode with 3 rewards: expected \(3, 1\), got \(4, 1\)",
        ),
    ],
)
def test_wrong_episodes_are_described(change: dict[str, Any], words: str) -> None:
    episode = {
        "obs": np.zeros((3, 2)),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
    } | change
    with pytest.raises(ShapeMismatchError, match=words):
        ReplayBuffer(10, (2,), 1).add_episode(**episode)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, (2,), 1), "capacity of a replay buffer must be an integer >= 1, got 0"),
        (
            ("100", (2,), 1),
            "capacity of a replay buffer must be an integer >= 1, got '100'; write "
            "100 without quotes",
        ),
        ((10, (), 1), "obs_shape must have at least one axis, got ()"),
        ((10, (2,), 0), "action_dim of a replay buffer must be an integer >= 1, got 0"),
        ((10, (0,), 1), "each axis of obs_shape of a replay buffer must be an integer >= 1, got 0"),
        ((10, (2,), None), "action_dim of a replay buffer must be an integer >= 1, got None"),
    ],
)
def test_wrong_sizes_of_a_buffer_are_shown_as_they_came(
    sizes: tuple[Any, Any, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        ReplayBuffer(*sizes)


def test_numbers_that_fit_are_taken_and_things_show_what_they_hold(model: Any) -> None:
    buffer = ReplayBuffer(1e3, 4, np.int64(2))  # type: ignore[arg-type]
    assert (buffer.capacity, buffer.obs_shape, buffer.action_dim) == (1000, (4,), 2)
    assert (
        repr(buffer)
        == "<ReplayBuffer: 0 of 1000 transitions in 0 episodes, obs (4,) float32, action_dim 2>"
    )
    assert (
        repr(LatentState(torch.zeros(2, 3))) == "<LatentState deterministic: deterministic [2, 3]>"
    )
    shown = repr(model.imagine(model.encode(np.zeros((3, 4))), np.zeros((5, 3, 2))))
    assert shown.startswith("<Trajectory: 6 states, actions [5, 3, 2], rewards [5, 3, 1]")
