import pytest
import torch

from worldloom import CategoricalLatentSpace, GaussianLatentSpace, LatentSpace, SimNormLatentSpace

SPACES = [GaussianLatentSpace(6), CategoricalLatentSpace(3, 4), SimNormLatentSpace(16, 8)]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_samples_and_divergences_behave(space: LatentSpace) -> None:
    torch.manual_seed(0)
    params = torch.randn(5, space.param_dim)
    other = torch.randn(5, space.param_dim)
    assert space.sample(params).flatten(1).shape == (5, space.sample_dim)
    assert torch.equal(
        space.sample(params, deterministic=True), space.sample(params, deterministic=True)
    )
    assert space.kl_divergence(params, params).abs().max() < 1e-5
    plain = space.kl_divergence(params, other)
    is_code = isinstance(space, SimNormLatentSpace)  # not a distribution
    assert ((plain == 0) if is_code else (plain > 0)).all()
    assert (space.kl_divergence(params, other, 0.05) <= plain).all()


def test_categorical_samples_are_one_hot_with_gradient() -> None:
    space = CategoricalLatentSpace(3, 4)
    params = torch.randn(5, 12, requires_grad=True)
    sample = space.sample(params)
    assert sample.shape == space.sample(params.view(5, 3, 4)).shape == (5, 3, 4)
    assert torch.allclose(sample.sum(-1), torch.ones(5, 3))
    (sample * torch.randn(4)).sum().backward()
    assert params.grad is not None
    assert params.grad.abs().sum() > 0


def test_simnorm_refuses_a_ragged_size() -> None:
    with pytest.raises(ValueError, match="multiple"):
        SimNormLatentSpace(10, 8)


@pytest.mark.parametrize("space", SPACES)
def test_no_rows_have_no_samples(space: LatentSpace) -> None:
    sample = space.sample(torch.zeros(2, 0, space.param_dim))
    assert sample.flatten(2).shape == (2, 0, space.sample_dim)
