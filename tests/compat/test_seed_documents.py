"""Every Python block of the documents that the library was asked for runs as it is written.

The documents lie outside the repository: WORLDLOOM_SEEDS names their folder, else ../shared/seeds
beside the repository. Blocks of one document share a namespace, in order, as a reader would type
them. Only what makes a run long is made small.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import worldloom
from worldloom import create_world_model
from worldloom.training import ReplayBuffer
from worldloom.training.data import create_random_buffer

NAMED = os.environ.get("WORLDLOOM_SEEDS")
SEEDS = Path(NAMED) if NAMED else Path(__file__).parents[3] / "shared" / "seeds"
DOCUMENTS = ("readme.md", "concepts.md", "protocol.md", "world_model_guide.md")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PLACEHOLDERS = "recon_loss = ..."
"""How the one block begins whose values are left out with dots."""
SMALLER = {
    "total_steps=50_000": "total_steps=2, log_interval=1, batch_size=2, sequence_length=8, eval_batches=1",
    "total_steps=100_000,\n    batch_size=256": "total_steps=2, sequence_length=5, eval_batches=1,\n    batch_size=8",
    'model = create_world_model("dreamerv3:size12m", obs_shape=(4,), action_dim=2)': "model = small_dreamer()",
    "config = TrainingConfig(\n    total_steps=2": "fill(buffer)\nconfig = TrainingConfig(\n    total_steps=2",
}
"""An empty buffer is filled before it is trained from: the document leaves that to the reader."""


def documents() -> list[Path]:
    if NAMED and not SEEDS.is_dir():
        raise FileNotFoundError(f"WORLDLOOM_SEEDS={NAMED} is not a folder")
    return sorted(SEEDS.glob("*.md")) if SEEDS.is_dir() else []


def blocks(name: str) -> list[str]:
    if not documents():
        pytest.skip(
            f"{name} is not on this machine: set WORLDLOOM_SEEDS to the folder with "
            f"{', '.join(DOCUMENTS)}"
        )
    found = BLOCK.findall((SEEDS / name).read_text())
    assert found, f"{name} has no Python block"
    return found


def run(code: str, names: dict[str, Any]) -> None:
    for long, short in SMALLER.items():
        code = code.replace(long, short)
    exec(compile(code, "<block>", "exec"), names)


def fill(buffer: ReplayBuffer) -> None:
    for _ in range(12):
        steps = 20
        obs = np.random.default_rng(0).standard_normal((steps, *buffer.obs_shape))
        buffer.add_episode(
            obs,
            np.zeros((steps, buffer.action_dim)),
            np.zeros(steps),
            np.arange(steps) == steps - 1,
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def dreamer() -> Any:
    torch.manual_seed(0)
    return create_world_model("dreamerv3:ci")


def vocabulary(model: Any) -> dict[str, Any]:
    """What the reference pages assume: a model, and something to feed it."""
    obs = torch.rand(2, 3, 64, 64)
    action = torch.rand(2, 4)
    batch = {
        "obs": torch.rand(2, 5, 3, 64, 64),
        "actions": torch.rand(2, 5, 4),
        "rewards": torch.rand(2, 5),
    }
    state = model.encode(obs)
    common = {
        "model": model,
        "obs": obs,
        "action": action,
        "state": state,
        "initial_state": state,
        "actions": torch.rand(3, 2, 4),
    }
    return {
        "LatentState": worldloom.LatentState,
        "Trajectory": worldloom.Trajectory,
        "batch": batch | {"continues": torch.ones(2, 5)},
    } | common


def test_the_readme_s_quick_start_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    create, imagine, *_ = blocks("readme.md")
    names: dict[str, Any] = {}
    run(create, names)
    assert names["model"].config.model_type == "tdmpc2"
    # the next block feeds an image: it is about the first of the two models
    run(create.split("# TD-MPC2")[0], names)
    with torch.no_grad():
        run(imagine, names)
    assert capsys.readouterr().out.count("torch.Size([15, 1, 1])") == 2


def test_the_readme_s_training_blocks_run_as_written(folder: Path, dreamer: Any) -> None:
    _, _, one_line, control, core, imports = blocks("readme.md")
    create_random_buffer(800, (4,), 2, num_episodes=12, episode_length=60, seed=0).save(
        "trajectories.npz"
    )
    names = {
        "fill": fill,
        "small_dreamer": lambda: create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2),
    }
    run(one_line, names)
    assert (folder / "my_model" / "model.pt").exists()
    run(control, names)
    assert names["trainer"].state.global_step == 2
    with torch.no_grad():
        names |= vocabulary(dreamer)
        run(core, names)
    assert {"loss", "kl", "reconstruction"} <= set(names["losses"])
    assert {"obs", "reward", "continue"} == set(names["predictions"])
    run(imports, names)
    assert names["EarlyStoppingCallback"]


@pytest.mark.parametrize("name", ["concepts.md", "protocol.md"])
def test_the_reference_pages_run_as_written(name: str, folder: Path, dreamer: Any) -> None:
    with torch.no_grad():
        names = vocabulary(dreamer)
        for code in blocks(name):
            run(code, names)
        assert names["trajectory"].rewards.shape[2] == 1
        assert 0 <= names["predictions"]["continue"].min() <= 1
    if name == "protocol.md":
        assert isinstance(names["model"], worldloom.WorldModel)
        assert (folder / "my_model" / "config.json").exists()
        losses = set(names["losses"])
        assert {"loss", "kl_loss", "reconstruction_loss", "reward_loss", "continue_loss"} <= losses


def mse(one: Any, other: Any) -> Tensor:
    return (torch.flatten(one) - torch.flatten(other)).square().mean()


def mae(one: Any, other: Any) -> Tensor:
    return (torch.flatten(one) - torch.flatten(other)).abs().mean()


def guide_vocabulary(world_model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the guide assumes: layers, losses, a creature in a world, and a trajectory."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    creature = type("Creature", (), {"stamina": 0.0})()
    step = {
        "obs": torch.rand(7),
        "action": torch.rand(3),
        "reward": torch.tensor(0.5),
        "done": torch.tensor(0.0),
    }
    one = torch.rand(4, 7)
    points = np.arange(4.0)
    layers = {
        "nn": nn,
        "Sequential": nn.Sequential,
        "Linear": nn.Linear,
        "ReLU": nn.ReLU,
        "Sigmoid": torch.sigmoid,
        "cat": torch.cat,
    }
    losses = {
        "MSE": mse,
        "MAE": mae,
        "Adam": torch.optim.Adam,
        "clip_grad_norm_": nn.utils.clip_grad_norm_,
    }
    world = {
        "creature": creature,
        "max_stamina": 1.0,
        "observe": lambda c: torch.rand(7),
        "policy": lambda o: torch.rand(3),
    }
    world |= {
        "move": lambda c, a: torch.tensor(0.5),
        "check_goal_reached": lambda: torch.tensor(0.0),
        "no_grad": torch.no_grad,
    }
    batch = {"obs": one, "action": torch.rand(4, 3), "reward": torch.rand(4), "next_obs": one}
    rest = {
        "minibatches": lambda trajectory: [batch],
        "stack": torch.stack,
        "sample_random_action": lambda: torch.rand(1, 3),
    }
    rest |= {
        "test_trajectory": [step] * 5,
        "world_model": world_model,
        "horizon": 3,
        "sample_action": lambda: torch.rand(4, 3),
    }
    rest |= {
        "encode": world_model.encode,
        "dynamics": world_model.predict_next,
        "next_obs": one,
        "obs": one,
        "action": batch["action"],
    }
    rest |= {
        "obs_reconstructed": one,
        "obs_original": one,
        "predicted_reward": points,
        "actual_reward": points,
    }
    rest |= {
        "predicted_next_latent": torch.rand(4, 16),
        "target_next_latent": torch.rand(4, 16),
        "original_obs": points,
    }
    rest |= {
        "WorldModel": lambda: create_world_model("mlp:ci"),
        "mean": lambda x: torch.stack(x).mean(0),
        "logger": None,
    }
    rest |= {
        "var": lambda x: torch.stack(x).var(0),
        "actual_pos": points,
        "predicted_pos": points,
        "reconstructed_obs": points,
    }
    return layers | losses | world | rest


def test_the_guide_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    names = guide_vocabulary(create_world_model("mlp:ci", predict_variance=True), monkeypatch)
    # one block uses these words for results
    helpers = {name: names[name] for name in ("mean", "var")}
    run_count = 0
    found = blocks("world_model_guide.md")
    for code in found:
        if PLACEHOLDERS in code:
            continue
        if "predicted_reward, actual_reward" in code:
            names |= {"predicted_reward": torch.rand(4), "actual_reward": torch.rand(4)}
        if "predicted_next_latent, target" in code:
            names["next_latent_target"] = torch.rand(4, 16)
        if code.startswith("# Compare predicted") or "plt.subplots" in code:
            names |= {"predicted_reward": np.arange(4.0), "actual_reward": np.arange(4.0)}
        names |= helpers
        run(code, names)
        names["create_batch"] = names.get("create_training_batch")
        run_count += 1
    plt.close("all")
    assert run_count == len(found) - 1  # all but the one whose values are left out with dots
    assert len(names["collect_trajectory"](3)) == 3
    assert names["train_world_model"](names["test_trajectory"]) > 0
    assert names["imagine_trajectory"](torch.rand(1, 7), horizon=4).shape[0] == 4
    assert names["uncertainty"].shape == names["mean_pred"].shape
    out = capsys.readouterr().out
    assert all(
        f"{word}: " in out for word in ("Prediction MSE", "Reward MAE", "Reconstruction MSE")
    )
