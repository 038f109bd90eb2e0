import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldloom import LatentState, Trajectory, create_world_model
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.pixel_text import GAP, HEIGHT, text_size
from worldloom.evaluation import (
    evaluate_world_model,
    imagination_frames,
    plot_open_loop,
    plot_predictions,
    visualize_imagination,
)
from worldloom.evaluation.metrics import calibration, open_loop
from worldloom.evaluation.visualize import (
    ACCENT,
    BAR_SIDE,
    BORDER,
    INK,
    imagination_strip,
)
from worldloom.training.data import create_random_buffer


class Counter(torch.nn.Module):
    """A world whose observation is the sum of actions so far, and a model of it that is wrong by
    ``slope`` per step.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def encode(self, obs: torch.Tensor, deterministic: bool = False) -> LatentState:
        return LatentState(obs)

    def observe(
        self,
        state: LatentState,
        action: torch.Tensor,
        obs: torch.Tensor,
        *,
        deterministic: bool = False,
    ) -> LatentState:
        return LatentState(obs)

    def decode(self, state: LatentState) -> dict[str, torch.Tensor]:
        return {"obs": state.features}

    def imagine(
        self, state: LatentState, actions: torch.Tensor, deterministic: bool = False
    ) -> Trajectory:
        positions = torch.cat([state.features[None], actions + self.slope]).cumsum(0)
        return Trajectory(
            [LatentState(p) for p in positions],
            actions,
            actions + 0.5,
            continues=torch.ones_like(actions),
        )


def counting() -> dict[str, torch.Tensor]:
    actions = torch.randint(0, 3, (4, 9, 1)).float()
    obs = torch.cat([torch.zeros(4, 1, 1), actions.cumsum(1)], 1)
    return {
        "obs": obs[:, :-1],
        "last_obs": obs[:, -1],
        "actions": actions,
        "rewards": actions[..., 0],
        "continues": torch.ones(4, 9),
    }


def test_errors_are_exactly_those_of_a_model_that_drifts() -> None:
    report = evaluate_world_model(Counter(0.1), counting(), horizon=6, warm_up=4)
    assert report.obs_error == pytest.approx([(0.1 * k) ** 2 for k in range(1, 7)], rel=1e-4)
    assert report.latent_error == pytest.approx(report.obs_error)
    assert report.reward_mae == pytest.approx(0.5)
    assert (report.reconstruction_error, report.continue_calibration) == (0.0, 0.0)
    assert report.one_step_error == report.to_dict()["obs_error"][0]
    with pytest.raises(ConfigurationError, match="too short"):
        evaluate_world_model(Counter(0.0), counting(), horizon=8, warm_up=4)


@pytest.mark.parametrize(
    ("name", "shape", "changes", "value"),
    [
        ("dreamerv3:ci", (4,), {}, 200.0),
        ("dreamerv3:ci", (3, 32, 32), {"encoder_type": "mlp"}, 200.0),
        ("dreamerv3:ci", (3, 32, 32), {}, 200 / 255),
        ("tdmpc2:ci", (4,), {"use_decoder": True}, 200 / 255),
        ("mlp:ci", (4,), {}, 200.0),
        ("mlp:ci", (3, 32, 32), {}, 200 / 255),
    ],
)
def test_reality_has_the_units_of_what_is_decoded(
    name: str, shape: tuple[int, ...], changes: dict[str, Any], value: float
) -> None:
    torch.manual_seed(0)
    model: Any = create_world_model(name, obs_shape=shape, action_dim=2, **changes)
    obs = torch.full((2, 4, *shape), 200, dtype=torch.uint8)
    blank = {"actions": torch.zeros(2, 4, 2), "rewards": torch.zeros(2, 4)}
    batch = {"obs": obs, "continues": torch.ones(2, 4), **blank}
    report = evaluate_world_model(model, batch, horizon=2, warm_up=2)
    assert report.steps is not None
    assert report.steps.obs is not None
    assert report.steps.obs[1] == pytest.approx(value)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10 if len(shape) == 1 else 0):
        optimizer.zero_grad()
        model.compute_loss(batch | {"obs": obs})["loss"].backward()
        optimizer.step()
    if len(shape) == 3:
        batch["obs"][:, 2:] = 0
        row = np.array_split(imagination_frames(model, batch, horizon=2, warm_up=1), 3, axis=1)[0]
        assert np.unique(row[0, :32, :32]).tolist() == ([255] if value > 1 else [200])
        assert not row[1, :32, :32].any()
    else:
        decoded = model.decode(model.encode(obs[:, 0]))["obs"].mean()
        assert (decoded > 2) == (value > 1)


def test_rows_of_several_tasks_are_measured_as_their_own() -> None:
    model: Any = create_world_model("tdmpc2:ci", obs_shape=(4,), action_dim=2, num_tasks=3)
    with torch.no_grad():
        model.net.task_emb.mul_(20)
    batch = create_random_buffer(60, (4,), 2, 3, 20, seed=0).sample(3, 5)
    tasks = torch.tensor([0, 1, 2])
    together = open_loop(model, batch | {"task_id": tasks}, horizon=3, warm_up=2)
    with torch.no_grad():
        seen = model.encode(batch["obs"][:, 2], task_id=tasks).features
    assert np.allclose(together.latent[1][0], seen.numpy(), atol=1e-5)
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        alone = open_loop(model, one | {"task_id": tasks[row]}, horizon=3, warm_up=2)
        assert np.allclose(together.latent[0][:, row], alone.latent[0][:, 0], atol=1e-5)
        assert np.allclose(together.latent[1][:, row], alone.latent[1][:, 0], atol=1e-5)


def test_calibration_is_the_gap_between_probability_and_frequency() -> None:
    assert calibration(np.full(10, 0.95), np.array([1] * 9 + [0])) == pytest.approx(0.05)
    assert calibration(np.array([0.0, 1.0]), np.array([0, 1])) == 0.0


@pytest.mark.parametrize(
    ("name", "shape"), [("dreamerv3:ci", (3, 32, 32)), ("tdmpc2:ci", (4,)), ("mlp:ci", (4,))]
)
def test_every_model_can_be_measured_plotted_and_seen(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: Any = create_world_model(name, obs_shape=shape, action_dim=2)
    buffer = create_random_buffer(60, shape, 2, num_episodes=3, episode_length=20, seed=0)
    report = evaluate_world_model(model, buffer, horizon=3, warm_up=2, batch_size=2)
    again = evaluate_world_model(model, buffer, horizon=3, warm_up=2, batch_size=2)
    assert report.to_dict() == again.to_dict()
    assert len(report.latent_error) == 3
    assert (report.reconstruction_error is None) == (name == "tdmpc2:ci")
    for path in (
        plot_predictions(report, tmp_path / "p.png"),
        plot_open_loop(report, tmp_path / "o.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")
    gif = visualize_imagination(
        model, buffer, tmp_path / "dream.gif", horizon=3, warm_up=2, sequences=2
    )
    assert gif.read_bytes().startswith(b"GIF8")


def test_frames_show_reality_imagination_and_their_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_world_model("dreamerv3:ci", obs_shape=(3, 32, 32), action_dim=2)
    batch = create_random_buffer(60, (3, 32, 32), 2, 3, 20, seed=0).sample(2, 5)
    frames = imagination_frames(model, batch, horizon=3, warm_up=2)
    assert frames.shape == (3, 3 * 34, 2 * 34, 3)
    real = batch["obs"][0, 2].permute(1, 2, 0).numpy()
    assert np.array_equal(frames[0, :32, :32], real)
    png = visualize_imagination(model, batch, tmp_path / "dream.png", horizon=3, warm_up=2)
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match=r"\.png, \.gif or \.mp4"):
        visualize_imagination(model, batch, tmp_path / "dream.bmp", horizon=3, warm_up=2)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependencyError, match=r"gif needs only pillow.*pip install"):
        visualize_imagination(model, batch, tmp_path / "dream.mp4", horizon=3, warm_up=2)


@pytest.mark.parametrize(("name", "shape"), [("dreamerv3:ci", (3, 32, 32)), ("tdmpc2:ci", (4,))])
def test_a_strip_names_its_rows_and_shows_where_imagination_begins(
    name: str, shape: tuple[int, ...]
) -> None:
    model = create_world_model(name, obs_shape=shape, action_dim=2)
    batch = create_random_buffer(60, shape, 2, 3, 30, seed=0).sample(2, 22)
    strip = imagination_strip(model, batch, horizon=20, warm_up=2)
    left = text_size("imagined")[1] + 2 * GAP
    names = strip[:, :left]
    assert (names == INK).all(-1).any()
    cells = strip.shape[1] // (BAR_SIDE + BORDER)
    has_line = (strip == ACCENT).all(-1).any()
    assert (cells, has_line) == ((13, True) if name == "dreamerv3:ci" else (12, False))
    if name == "dreamerv3:ci":
        seen = batch["obs"][0, 1].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
        top = 2 * (HEIGHT + GAP) + GAP
        assert np.array_equal(strip[top : top + 64, left : left + 64], seen)


def test_packages_are_checked_before_anything_is_imagined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="pillow"):
        visualize_imagination(None, None, tmp_path / "dream.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report: Any = None
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        plot_predictions(report, tmp_path / "p.png")
