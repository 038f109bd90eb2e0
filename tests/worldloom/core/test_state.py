import pytest
import torch

from worldloom import LatentState, LatentType, Trajectory
from worldloom.core.exceptions import ShapeMismatchError, StateError


def test_a_state_needs_at_least_one_part() -> None:
    with pytest.raises(StateError, match="deterministic, stochastic or codebook_indices"):
        LatentState()


def test_features_put_history_first_and_flatten_categoricals() -> None:
    state = LatentState(torch.ones(2, 3), torch.zeros(2, 4, 5), latent_type=LatentType.CATEGORICAL)
    assert state.features.shape == (2, 23)
    assert state.features[:, :3].eq(1).all()
    assert (state.batch_size, state.feature_dim, state.device.type) == (2, 23, "cpu")
    with pytest.raises(StateError, match="at most 3 axes"):
        LatentState(stochastic=torch.zeros(2, 3, 4, 5)).features  # noqa: B018


def test_a_clone_shares_no_memory_and_detach_cuts_the_gradient() -> None:
    state = LatentState(torch.ones(2, 3, requires_grad=True))
    clone = state.detach().clone()
    clone.deterministic[0] = 7  # type: ignore[index]
    assert state.features.eq(1).all()
    assert not clone.features.requires_grad


def test_torch_functions_read_the_features_of_a_state() -> None:
    a = LatentState(torch.zeros(2, 3))
    b = LatentState(torch.ones(2, 3))
    assert torch.nn.functional.mse_loss(a, b).item() == 1.0  # type: ignore[arg-type]
    assert torch.stack([a, b]).shape == (2, 2, 3)  # type: ignore[list-item]


def test_a_trajectory_counts_states_and_steps() -> None:
    states = [LatentState(torch.full((2, 3), float(t))) for t in range(4)]
    trajectory = Trajectory(states, torch.zeros(3, 2, 1), torch.zeros(3, 2, 1))
    assert (len(trajectory), trajectory.horizon, trajectory.batch_size) == (4, 3, 2)
    assert trajectory.to_features_tensor()[2].eq(2).all()
    assert trajectory.to("cpu").detach().continues is None


def test_states_may_have_a_leading_time_axis() -> None:
    steps = [
        LatentState(torch.full((2, 3), float(t)), torch.zeros(2, 4, 5), metadata={"task_id": 1})
        for t in range(6)
    ]
    joint = LatentState.stack(steps)
    assert (joint.batch_size, joint.feature_dim, joint.features.shape) == (2, 23, (6, 2, 23))
    assert torch.equal(joint[4].features, steps[4].features)
    assert joint[1:3].features.shape == (2, 2, 23)
    assert joint.metadata == {"task_id": 1}
    flat = LatentState(torch.zeros(6, 2, 3), torch.ones(6, 2, 7))
    assert flat.features.shape == (6, 2, 10)
    with pytest.raises(ShapeMismatchError, match="stochastic part of a state"):
        LatentState(torch.zeros(6, 2, 3), torch.zeros(5, 2, 4)).features  # noqa: B018
    with pytest.raises(StateError, match="at most 4 axes"):
        LatentState(torch.zeros(6, 2, 3), torch.zeros(6, 2, 4, 5, 1)).features  # noqa: B018
    with pytest.raises(StateError, match="stack needs"):
        LatentState.stack([])


def test_rows_of_a_state_can_be_taken() -> None:
    state = LatentState(torch.arange(6.0).view(3, 2), torch.zeros(3, 4, 5))
    assert state[:2].batch_size == 2
    assert state[torch.tensor([2, 0])].features[:, 0].tolist() == [4.0, 0.0]


def test_what_is_kept_for_every_row_goes_with_it() -> None:
    kept = {
        "task_id": torch.tensor([0, 1, 2]),
        "name": ["a", "b", "c"],
        "pair": ("a", "b"),
        "one": torch.tensor(4),
    }
    kept["array"] = kept["task_id"].numpy()
    rows = LatentState(torch.arange(6.0).view(3, 2), metadata=kept)
    for index in ([2, 0], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, None)):
        taken = rows[index]
        want = (taken.features[:, 0] / 2).long().tolist()
        assert taken.metadata["task_id"].tolist() == want
        assert taken.metadata["array"].tolist() == want
        assert taken.metadata["name"] == ["abc"[row] for row in want]
        assert (taken.metadata["pair"], taken.metadata["one"]) == (("a", "b"), 4)
    assert (rows[1].metadata["task_id"], rows[1].metadata["name"]) == (1, "b")
    steps = LatentState.stack([rows, rows])
    assert steps[1].metadata["task_id"].tolist() == [0, 1, 2]
    assert steps[:, [2, 0]].metadata["name"] == ["c", "a"]
    copied = rows.clone()
    copied.metadata["task_id"][0] = 9
    assert rows.metadata["task_id"].tolist() == [0, 1, 2]
