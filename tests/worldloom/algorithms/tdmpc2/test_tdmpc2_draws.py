"""The draws have the laws that their docstrings state."""

from __future__ import annotations

import torch

from worldloom.algorithms.tdmpc2.draws import PlanDraws, PlanShape, draw_pairs, dropout_multiplier


def test_pairs_are_two_different_critics_and_uniform() -> None:
    pairs = draw_pairs((20_000,), 5, torch.Generator().manual_seed(0))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).view(5, 5)
    expected = 20_000 / 20
    off_diagonal = counts[~torch.eye(5, dtype=torch.bool)].float()
    assert (off_diagonal - expected).abs().max() < 5 * expected**0.5


def test_dropout_drops_at_its_rate_everywhere_and_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    rate = 0.05
    shape = (3, 200, 40)
    masks = torch.stack([dropout_multiplier(shape, rate, generator) for _ in range(50)])
    dropped = masks == 0
    assert torch.equal(masks[~dropped].unique(), torch.tensor([1 / (1 - rate)]))
    share = dropped.float().mean()
    assert abs(float(share) - rate) < 0.002
    halves = dropped.flatten(1).float()
    assert abs(float(halves[:, :12_000].mean() - halves[:, 12_000:].mean())) < 0.003
    neighbours = (dropped[..., 1:] & dropped[..., :-1]).float().mean()
    assert abs(float(neighbours) - rate**2) < 0.001


def test_one_generator_per_env_gives_each_env_its_own_stream() -> None:
    shape = PlanShape(
        horizon=2,
        policy_samples=1,
        samples=4,
        elites=2,
        iterations=2,
        action_dim=1,
        num_q=2,
        images=1,
    )
    together = PlanDraws.draw_each(shape, [torch.Generator().manual_seed(s) for s in (0, 1)])
    alone = PlanDraws.draw(1, shape, torch.Generator().manual_seed(1))
    assert torch.equal(together.rows(1, 2).sample_noise, alone.sample_noise)
    assert together.shift is not None
    assert together.shift.shape == (2, 1, 2)
    assert not torch.equal(together.sample_noise[0], together.sample_noise[1])
