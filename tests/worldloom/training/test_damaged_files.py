"""Whatever byte of a saved file is changed, lost or added: an error that says so, or the very same
object; never a crash.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom import create_world_model
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.training import ReplayBuffer, Trainer, TrainingConfig
from worldloom.training.data import create_random_buffer
from worldloom.training.tree_files import load_tree_file, save_tree_file

EXAMPLES = settings(derandomize=True, max_examples=30, deadline=None)
COUNT = sum(
    p.numel()
    for p in create_world_model(
        "mlp:ci", obs_shape=(1,), action_dim=1, latent_dim=2, hidden_dim=2
    ).parameters()
)
PLACE = st.floats(0, 1, exclude_max=True)
Damage = Callable[[bytes, float, int], bytes]


def flip(data: bytes, place: float, mask: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def cut(data: bytes, place: float, mask: int) -> bytes:
    return data[: int(place * len(data))]


def grow(data: bytes, place: float, mask: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([mask]) * 7 + data[at:]


DAMAGES = st.sampled_from([flip, cut, grow])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind, tiny."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = create_world_model("mlp:ci", obs_shape=(1,), action_dim=1, latent_dim=2, hidden_dim=2)
    model.save_pretrained(folder / "model")
    create_random_buffer(8, (2,), 1, num_episodes=2, episode_length=4, seed=0).save(
        folder / "data.npz"
    )
    save_tree_file(folder / "c.pt", {"w": torch.arange(6.0), "step": 3, "lr": 0.25}, {"step": 3})
    TrainingConfig(output_dir="x").save(folder / "training.json")
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "config.json"])
@EXAMPLES
@given(damage=DAMAGES, place=PLACE, mask=st.integers(1, 255))
def test_a_damaged_model_is_refused_or_the_same(
    name: str, damage: Damage, place: float, mask: int, saved: Path
) -> None:
    path = saved / "model" / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole, place, mask))
    try:
        model = create_world_model(saved / "model")
        assert name == "config.json"  # a setting may still be legal; weights never
        assert sum(p.numel() for p in model.parameters()) == COUNT
    except CheckpointError as error:
        assert str(saved / "model") in str(error)  # noqa: PT017
    except ConfigurationError as error:
        assert "device" in str(error)  # noqa: PT017  (the folder names a device that this machine lacks)
    finally:
        path.write_bytes(whole)


@EXAMPLES
@given(damage=DAMAGES, place=PLACE, mask=st.integers(1, 255))
def test_a_damaged_checkpoint_is_refused_or_the_same(
    damage: Damage, place: float, mask: int, saved: Path
) -> None:
    path = saved / "damaged.pt"
    path.write_bytes(damage((saved / "c.pt").read_bytes(), place, mask))
    try:
        tree, facts = load_tree_file(path)
    except CheckpointError as error:
        assert "damaged.pt" in str(error)  # noqa: PT017
    else:
        assert torch.equal(tree["w"], torch.arange(6.0))
        assert (tree["step"], tree["lr"], facts) == (3, 0.25, {"step": 3})


@EXAMPLES
@given(damage=DAMAGES, place=PLACE, mask=st.integers(1, 255))
def test_a_damaged_file_of_episodes_is_refused_or_the_same(
    damage: Damage, place: float, mask: int, saved: Path
) -> None:
    path = saved / "damaged.npz"
    path.write_bytes(damage((saved / "data.npz").read_bytes(), place, mask))
    try:
        buffer = ReplayBuffer.load(path)
    except WorldLoomError as error:
        assert isinstance(error, CheckpointError)  # noqa: PT017
        assert "damaged.npz" in str(error)  # noqa: PT017
    else:
        again = list(buffer.episodes())
        for one, other in zip(again, ReplayBuffer.load(saved / "data.npz").episodes(), strict=True):
            assert all(str(one[key]) == str(other[key]) for key in one)


@EXAMPLES
@given(damage=DAMAGES, place=PLACE, mask=st.integers(1, 255))
def test_damaged_training_settings_are_refused_or_legal(
    damage: Damage, place: float, mask: int, saved: Path
) -> None:
    path = saved / "damaged.json"
    path.write_bytes(damage((saved / "training.json").read_bytes(), place, mask))
    try:
        TrainingConfig.load(path)
    except (CheckpointError, ConfigurationError) as error:
        assert str(error)  # noqa: PT017


def test_files_of_other_makers_are_refused(saved: Path, tmp_path: Path) -> None:
    trainer = Trainer(create_world_model("mlp:ci"), TrainingConfig(output_dir=str(tmp_path)))
    foreign: dict[str, Any] = {
        "png": b"\x89PNG\r\n\x1a\n" + os.urandom(64),
        "empty": b"",
        "text": b"hello",
        "json": b"[]",
    }
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            trainer.load_checkpoint(tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            ReplayBuffer.load(tmp_path / name)
    for broken in (
        [],
        {"model_type": "mlp", "obs_shape": "abc"},
        {"model_type": "mlp", "action_dim": "2"},
        {"no": "such"},
    ):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / "config.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            create_world_model(tmp_path / "m")
    save_tree_file(tmp_path / "other.pt", {"model": {}}, {})
    with pytest.raises(CheckpointError, match=r"other\.pt: lacks"):
        trainer.load_checkpoint(tmp_path / "other.pt")
