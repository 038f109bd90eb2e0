"""Checkpoints appear whole or not at all, hold what they were given, and never unpickle."""

import json
import logging

import numpy as np
import pytest
import torch

from worldloom.core.exceptions import CheckpointError
from worldloom.training.checkpoints import CheckpointStore, load_tree, read_manifest, save_tree


def tree() -> dict:
    shared = torch.arange(6.0)
    return {
        "model": {"w": shared, "view": shared[2:4], "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)},
        "array": np.arange(3, dtype=np.uint16),
        "counts": [1, 2.5, None, True, "text"],
    }


def test_a_tree_comes_back_as_it_was(tmp_path):
    save_tree(tmp_path / "c", tree(), {"score": 1.5})
    loaded = load_tree(tmp_path / "c")
    assert torch.equal(loaded["model"]["view"], torch.tensor([2.0, 3.0]))
    assert loaded["model"]["half"].dtype == torch.bfloat16
    assert loaded["optimizer"]["state"][0]["step"] == 3
    assert loaded["optimizer"]["betas"] == (0.9, 0.999)
    assert loaded["array"].dtype == np.uint16
    assert loaded["counts"] == [1, 2.5, None, True, "text"]
    assert read_manifest(tmp_path / "c")["facts"] == {"score": 1.5}


def test_what_would_need_pickle_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="/a/b is a object"):
        save_tree(tmp_path / "c", {"a": {"b": object()}})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "tree.json", "manifest.json"])
def test_a_flipped_byte_or_a_cut_file_is_found(tmp_path, name):
    save_tree(tmp_path / "c", tree())
    path = tmp_path / "c" / name
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        load_tree(tmp_path / "c")


def test_newest_skips_a_corrupt_checkpoint_with_a_warning(tmp_path, caplog):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, {"step": step})
    assert [f.name for f in store.folders()] == ["step-000000000003", "step-000000000002"]
    (tmp_path / "step-000000000003" / "tree.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        folder, loaded = store.newest()
    assert (folder.name, loaded["step"]) == ("step-000000000002", 2)
    assert "step-000000000003" in caplog.text


def test_an_unfinished_checkpoint_is_not_seen(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"step": 1})
    (tmp_path / "step-000000000009.tmp").mkdir()
    assert store.newest()[1]["step"] == 1


def test_what_a_killed_writer_left_half_done_goes_with_the_next_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    (tmp_path / "step-000000000007.tmp").mkdir()
    (tmp_path / "step-000000000007.tmp" / "tensors.safetensors").write_bytes(b"half")
    store.save(9, tree())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000009"]


def test_best_is_replaced_only_by_a_better_score(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    assert store.mark_best(store.save(1, {"step": 1}), score=5.0)
    assert not store.mark_best(store.save(2, {"step": 2}), score=4.0)
    assert load_tree(tmp_path / "best")["step"] == 1
    assert store.mark_best(store.save(3, {"step": 3}), score=6.0)
    assert load_tree(tmp_path / "best")["step"] == 3
    assert json.loads((tmp_path / "best" / "manifest.json").read_text())["facts"]["score"] == 6.0
