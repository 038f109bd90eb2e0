"""Trained offline, every model learns a world that is simple enough to diagnose: a damped
oscillator pushed by the action.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from worldloom import create_world_model
from worldloom.evaluation import evaluate_world_model
from worldloom.training import ReplayBuffer, train

TURN = np.array([[0.95, 0.2], [-0.2, 0.95]])


def oscillator() -> ReplayBuffer:
    """Episodes of 30 steps; the reward of a step is the first component of where it was taken."""
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(2000, (2,), 1, seed=0)
    for _ in range(60):
        actions = rng.uniform(-1, 1, (30, 1))
        obs = [rng.normal(size=2)]
        for action in actions:
            obs.append(TURN @ obs[-1] + np.array([0, 0.3]) * action)
        seen = np.array(obs)
        buffer.add_episode(seen, actions, seen[:-1, 0])
    return buffer


@pytest.mark.learn
@pytest.mark.parametrize(
    ("name", "steps", "rate", "share"),
    [
        ("mlp:ci", 400, 3e-3, 0.1),
        ("tdmpc2:ci", 300, 1e-3, 0.4),
        ("dreamerv3:ci", 250, 1e-3, 0.8),
    ],
)
def test_a_model_learns_to_foresee_rewards_eight_steps_ahead(
    name: str, steps: int, rate: float, share: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    buffer = oscillator()
    model = create_world_model(name, obs_shape=(2,), action_dim=1)
    options = {"horizon": 8, "warm_up": 4, "held_out": (10, True)}
    before = evaluate_world_model(model, buffer, **options)  # type: ignore[arg-type]
    train(
        model,
        buffer,
        total_steps=steps,
        batch_size=16,
        sequence_length=12,
        learning_rate=rate,
        output_dir=str(tmp_path),
        log_interval=1000,
        eval_interval=1000,
    )
    after = evaluate_world_model(model, buffer, **options)  # type: ignore[arg-type]
    assert after.reward_mae < max(share, 0.15) * before.reward_mae
    if before.obs_error:
        assert after.obs_error[-1] < 0.2 * before.obs_error[-1]
