import pytest
import torch

from worldloom import create_world_model
from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom.models.mlp import plan

OBS = torch.rand(4, 7)
ACTION = torch.rand(4, 3)


def test_the_guide_s_names_take_a_tensor_or_a_state() -> None:
    model = create_world_model("mlp:ci")
    state = model.encode(OBS)
    latent = model.predict_next(state.features, ACTION)
    assert torch.equal(latent, model.predict_next(state, ACTION).features)
    assert torch.equal(
        model.predict_reward(latent), model.predict_reward(model.predict_next(state, ACTION))
    )
    done = model.predict_done(latent)
    assert done.shape == (4, 1)
    assert 0 <= done.min() <= done.max() <= 1


def test_an_ensemble_predicts_its_mean_and_its_members_disagree() -> None:
    model = create_world_model("mlp:ci", ensemble_size=3)
    state = model.encode(OBS)
    decoded = model.decode(state)
    parts = state.features.split(16, -1)
    members = torch.stack([m.decoder(z) for m, z in zip(model.members, parts, strict=True)])
    assert torch.allclose(decoded["obs"], members.mean(0), atol=1e-6)
    assert torch.allclose(
        decoded["disagreement"], members.var(0, unbiased=False).mean(-1, keepdim=True), atol=1e-6
    )
    assert (model.uncertainty(state, ACTION) > 0).all()


def test_a_variance_head_gives_a_positive_variance_and_others_say_how_to_get_one() -> None:
    mean, variance = create_world_model("mlp:ci", predict_variance=True)(OBS, ACTION)
    assert mean.shape == variance.shape == (4, 16)
    assert (variance > 0).all()
    plain = create_world_model("mlp:ci")
    with pytest.raises(StateError, match="predict_variance=True"):
        plain(OBS, ACTION)
    with pytest.raises(StateError, match="ensemble_size"):
        plain.uncertainty(plain.encode(OBS), ACTION)


class Line(torch.nn.Module):
    """A known world: the state moves by the action, the reward is minus the distance to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = create_world_model("mlp:ci", obs_shape=(1,), action_dim=1)
        self.config = self.inner.config

    def imagine(self, state, actions):  # type: ignore[no-untyped-def]
        from worldloom import LatentState, Trajectory

        positions = torch.cat([state.features[None], actions]).cumsum(0)
        states = [LatentState(p) for p in positions]
        return Trajectory(states, actions, -(positions[1:] - 2).abs())

    def uncertainty(self, state, action):  # type: ignore[no-untyped-def]
        return (action < 0).float()


@pytest.mark.parametrize(("method", "closest"), [("cem", 0.8), ("random", 0.3)])
def test_planning_walks_to_the_reward_and_a_bonus_turns_it_round(
    method: str, closest: float
) -> None:
    from worldloom import LatentState

    generator = torch.Generator().manual_seed(0)
    start = LatentState(torch.tensor([[0.0], [4.0]]))
    options = {
        "method": method,
        "horizon": 2,
        "num_samples": 64,
        "num_elites": 8,
        "generator": generator,
    }
    found = plan(Line(), start, **options)  # type: ignore[arg-type]
    assert found.action[0].item() > closest
    assert found.action[1].item() < -closest
    curious = plan(Line(), start, uncertainty_bonus=100.0, **options)  # type: ignore[arg-type]
    assert (curious.sequence < 0).all()
    with pytest.raises(ConfigurationError, match="num_elites"):
        plan(Line(), start, num_samples=4, num_elites=8)


def test_plans_of_discrete_models_are_codes_and_a_bonus_needs_uncertainty() -> None:
    model = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=3, action_type="discrete")
    state = model.encode(torch.rand(2, 4))
    small = {"horizon": 3, "num_samples": 8, "num_elites": 2, "iterations": 2}
    found = plan(model, state, **small)  # type: ignore[arg-type]
    assert found.sequence.shape == (2, 3, 3)
    assert set(found.sequence.unique().tolist()) == {0.0, 1.0}
    assert found.action.sum(-1).eq(1).all()
    with pytest.raises(
        ConfigurationError, match="uncertainty_bonus must be 0 for a DreamerV3WorldModel"
    ):
        plan(model, state, uncertainty_bonus=1.0, **small)  # type: ignore[arg-type]


def test_plans_keep_the_task_of_a_state() -> None:
    model = create_world_model("tdmpc2:ci", obs_shape=(4,), action_dim=3, num_tasks=2)
    state = model.encode(torch.rand(2, 4), task_id=torch.tensor([0, 1]))
    assert plan(model, state, horizon=2, num_samples=4, num_elites=2).action.shape == (2, 3)


def test_dynamics_do_not_learn_across_the_end_of_an_episode() -> None:
    model = create_world_model("mlp:ci")
    data = {
        "obs": torch.rand(2, 3, 7),
        "actions": torch.rand(2, 3, 3),
        "rewards": torch.zeros(2, 3),
    }
    ends = model.compute_loss(data | {"continues": torch.zeros(2, 3)})
    assert ends["dynamics"].item() == 0.0
    assert model.compute_loss(data | {"continues": torch.ones(2, 3)})["dynamics"].item() > 0


def test_uint8_vectors_are_read_and_decoded_as_they_are() -> None:
    """As ``dreamerv3`` does; images are fractions of 255."""
    model = create_world_model("mlp:ci")
    codes = torch.randint(0, 256, (4, 7), dtype=torch.uint8)
    assert torch.equal(model.encode(codes).features, model.encode(codes.float()).features)
    assert torch.equal(model.natural_obs(codes), codes.float())
    images = create_world_model("mlp:ci", obs_shape=(3, 4, 4))
    pixels = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(images.natural_obs(pixels), pixels / 255)
    assert torch.equal(images.encode(pixels).features, images.encode(pixels / 255).features)
