"""A folder of a saved model holds the old model or the new one, whatever happens while it is
written.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldloom.dying import dying
from worldloom import create_world_model, get_config
from worldloom.algorithms import pretrained
from worldloom.algorithms.configs import MLPConfig
from worldloom.algorithms.tdmpc2.world_model import TDMPC2WorldModel
from worldloom.core.exceptions import CheckpointError, ConfigurationError

FILES = ["config.json", "model.pt", "model.safetensors"]


def build(value: float) -> Any:
    """A tiny model whose weights and one of whose settings are ``value``."""
    model = create_world_model(
        "mlp:ci", obs_shape=(2,), action_dim=1, latent_dim=4, hidden_dim=4, reward_scale=value
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def value_of(folder: Path) -> float:
    model = create_world_model(folder)
    (value,) = {float(v) for p in model.parameters() for v in p.detach().flatten()} | {
        model.config.reward_scale
    }
    return value


def test_a_save_that_dies_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch):
    build(1.0).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    found = []
    for at in range(24):
        build(1.0).save_pretrained(tmp_path)
        with dying(monkeypatch, at):
            build(2.0).save_pretrained(tmp_path)
        found.append(value_of(tmp_path))
        assert get_config(tmp_path).reward_scale == found[-1]
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
    build(3.0).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*FILES, "notes.txt"]


def test_a_reader_beside_a_writer_gets_one_whole_model(tmp_path):
    build(0.0).save_pretrained(tmp_path)
    found = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            found.append(value_of(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(1, 15):
        build(float(turn)).save_pretrained(tmp_path)
    is_over.set()
    reader.join()
    assert found == sorted(found)
    assert len(found) > 1


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_says_so_and_leaves_the_model_that_was_there(tmp_path, monkeypatch):
    build(1.0).save_pretrained(tmp_path)
    for owner, name in ((pretrained, "save_file"), (torch, "save"), (pretrained, "write_json")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full_disk)
            with pytest.raises(
                CheckpointError,
                match=r"could not be saved .*No space left.* what was there before is unchanged",
            ):
                build(2.0).save_pretrained(tmp_path)
        assert value_of(tmp_path) == 1.0
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    monkeypatch.setattr(MLPConfig, "to_dict", lambda self: {"model_type": object()})
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        build(2.0).save_pretrained(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_home_is_understood_and_what_cannot_be_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    build(1.0).save_pretrained("~/models/a")
    assert sorted(path.name for path in (tmp_path / "models" / "a").iterdir()) == FILES
    assert not (tmp_path / "~").exists()
    assert value_of(Path("~/models/a")) == 1.0
    assert get_config("~/models/a").latent_dim == 4
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(CheckpointError, match=r"file.*could not be saved"):
            build(1.0).save_pretrained(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ConfigurationError, match="path must be a text or a Path"):
        build(1.0).save_pretrained(None)


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    build(1.0).save_pretrained(tmp_path / "link")
    build(2.0).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert value_of(tmp_path / "real") == 2.0


def test_a_file_where_a_model_is_asked_for_is_told_what_to_give(tmp_path):
    build(1.0).save_pretrained(tmp_path / "m")
    for name in FILES:
        with pytest.raises(ConfigurationError, match=r"got the file .*; give its folder, '.*/m'"):
            create_world_model(tmp_path / "m" / name)
    (tmp_path / "checkpoint_final.pt").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"load_checkpoint, and model\.save_pretrained"):
        create_world_model(tmp_path / "checkpoint_final.pt")
    with pytest.raises(ConfigurationError, match="model must be a text or a Path"):
        create_world_model(None)
    with pytest.raises(
        ConfigurationError, match="device must be auto, cpu, cuda or cuda:N, got None"
    ):
        create_world_model(tmp_path / "m", device=None)
    with pytest.raises(ValueError, match="nor is there a saved model or a run at 'runs/none'"):
        create_world_model("runs/none")


def test_a_model_of_another_class_or_of_none_is_refused(tmp_path):
    build(1.0).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match="holds a MLPWorldModel, got a request for a TDMPC2WorldModel"
    ):
        TDMPC2WorldModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"action_dim: .* was saved with 1, got 'x'"):
        create_world_model(tmp_path, action_dim="x")
    assert create_world_model(tmp_path, obs_shape=2).config.obs_shape == (2,)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "nothing", "files": facts["files"]})
    )
    with pytest.raises(CheckpointError, match="'nothing' is not a model of this library"):
        TDMPC2WorldModel.from_pretrained(tmp_path)
