"""The quick start, typed by hand: what a newcomer tries first must work at the sizes that a
newcomer takes.

The two lines that create a model are alternatives (docs/adr says why); each half below is what one
of them leads to.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from worldloom import create_world_model
from worldloom.core.exceptions import BufferError, ShapeMismatchError
from worldloom.training import ReplayBuffer, Trainer, TrainingConfig, train


def test_a_dreamer_of_default_shapes_dreams_from_an_image() -> None:
    model = create_world_model("dreamerv3:size12m")
    state = model.encode(torch.randn(1, 3, 64, 64))
    trajectory = model.imagine(state, torch.randn(15, 1, 4))
    assert trajectory.rewards.shape == trajectory.continues.shape == (15, 1, 1)
    assert set(model.decode(state)) == {"obs", "reward", "continue"}


def test_a_tdmpc2_model_dreams_from_a_vector_and_says_who_it_is_when_it_gets_an_image() -> None:
    model = create_world_model("tdmpc2:5m", obs_shape=(39,), action_dim=6)
    trajectory = model.imagine(model.encode(torch.randn(1, 39)), torch.randn(15, 1, 6))
    assert (trajectory.rewards.shape, trajectory.continues) == ((15, 1, 1), None)
    with pytest.raises(ShapeMismatchError, match=r"tdmpc2 5m, created with obs_shape=\(39,\)"):
        model.encode(torch.randn(1, 3, 64, 64))


def test_a_file_of_episodes_is_trained_from_and_the_model_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = ReplayBuffer(capacity=1000, obs_shape=(4,), action_dim=2)
    for _ in range(12):
        made.add_episode(
            np.random.randn(60, 4), np.random.randn(60, 2), np.ones(60), np.arange(60) == 59
        )
    made.save("trajectories.npz")

    model = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2)
    buffer = ReplayBuffer.load("trajectories.npz")
    trained_model = train(model, buffer, total_steps=2, batch_size=2, eval_batches=1)
    trained_model.save_pretrained("./my_model")
    assert {p.name for p in Path("my_model").iterdir()} >= {"config.json", "model.pt"}


def test_an_empty_buffer_is_refused_before_anything_runs(tmp_path: Path) -> None:
    model = create_world_model("tdmpc2:ci", obs_shape=(39,), action_dim=6)
    buffer = ReplayBuffer(capacity=100_000, obs_shape=(39,), action_dim=6)
    trainer = Trainer(
        model,
        TrainingConfig(
            total_steps=10, batch_size=256, learning_rate=1e-4, output_dir=str(tmp_path)
        ),
    )
    with pytest.raises(BufferError, match=r"no episode is long enough.* 0 stored episodes"):
        trainer.train(buffer)
    assert trainer.state.global_step == 0
