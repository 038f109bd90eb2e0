import pytest
import torch

from worldloom import LatentState, LatentType, Trajectory
from worldloom.core.exceptions import StateError


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
    a, b = LatentState(torch.zeros(2, 3)), LatentState(torch.ones(2, 3))
    assert torch.nn.functional.mse_loss(a, b).item() == 1.0  # type: ignore[arg-type]
    assert torch.stack([a, b]).shape == (2, 2, 3)  # type: ignore[list-item]


def test_a_trajectory_counts_states_and_steps() -> None:
    states = [LatentState(torch.full((2, 3), float(t))) for t in range(4)]
    trajectory = Trajectory(states, torch.zeros(3, 2, 1), torch.zeros(3, 2, 1))
    assert (len(trajectory), trajectory.horizon, trajectory.batch_size) == (4, 3, 2)
    assert trajectory.to_features_tensor()[2].eq(2).all()
    assert trajectory.to("cpu").detach().continues is None
