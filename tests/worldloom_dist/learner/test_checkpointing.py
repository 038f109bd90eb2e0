"""Checkpoints are written beside training, survive a failing disk, and may lie behind a URL."""

import logging
import threading
import uuid

import pytest
import torch

from worldloom.core.exceptions import CheckpointError
from worldloom.training.checkpoints import CheckpointStore
from worldloom.training.remote_checkpoints import RemoteCheckpointStore, open_store
from worldloom_dist.learner.checkpointing import CheckpointWriter


def tree(value: float) -> dict:
    return {"w": torch.full((3,), value), "n": int(value)}


def memory_url() -> str:
    return f"memory://checkpoints-{uuid.uuid4().hex}/run"


@pytest.mark.parametrize("where", ["path", "url"])
def test_the_newest_few_and_the_best_are_kept(where, tmp_path):
    store = open_store(tmp_path if where == "path" else memory_url(), keep=2)
    assert isinstance(store, RemoteCheckpointStore) == (where == "url")
    assert store.newest() is None
    for step in (1, 2, 3):
        folder = store.save(step, tree(step), {"env_steps": 10 * step})
        store.mark_best(folder, score={1: 5.0, 2: 9.0, 3: 7.0}[step])
    assert [folder.name for folder in store.folders()] == ["step-000000000003", "step-000000000002"]
    folder, found = store.newest()
    assert (folder.name, found["n"], found["w"].tolist()) == ("step-000000000003", 3, [3.0] * 3)
    assert store.size(folder) > 12
    from worldloom.training.manifests import read_manifest
    from worldloom.training.tree_files import load_tree

    best = store.find("best")
    assert load_tree(best)["n"] == 2
    assert read_manifest(best)["facts"]["score"] == 9.0
    with pytest.raises(CheckpointError, match="step-9"):
        store.find("step-9")


def test_behind_a_url_a_half_written_checkpoint_does_not_count_and_a_corrupt_one_is_skipped(caplog):
    store = RemoteCheckpointStore(memory_url())
    store.save(1, tree(1))
    store.save(2, tree(2))
    store.save(3, tree(3))
    # killed before the last file
    store.files.rm_file(f"{store.root}/step-000000000003/manifest.json")
    (stored,) = store.files.glob(f"{store.root}/step-000000000002/tensors*.safetensors")
    store.files.pipe_file(stored, b"garbage")
    with caplog.at_level(logging.WARNING):
        folder, found = store.newest()
    assert (folder.name, found["n"]) == ("step-000000000001", 1)
    assert "skipping a checkpoint" in caplog.text


def test_an_unknown_protocol_is_refused_in_a_sentence():
    with pytest.raises(CheckpointError, match="nosuch"):
        open_store("nosuch://bucket/run")


class SlowStore(CheckpointStore):
    """Writes when it is let, or fails."""

    def __init__(self, root):
        super().__init__(root)
        self.may_write = threading.Event()
        self.error = None

    def save(self, step, tree, facts=None):
        assert self.may_write.wait(20)
        if self.error:
            raise self.error
        return super().save(step, tree, facts)


def test_saving_does_not_wait_for_the_disk(tmp_path):
    store = SlowStore(tmp_path)
    writer = CheckpointWriter(store)
    writer.save(1, tree(1), {}, score=4.0)
    assert not writer.is_idle
    assert writer.finished() == ([], 0)
    store.may_write.set()
    writer.save(2, tree(2), {})
    writer.close()
    written, failed = writer.finished()
    assert ([one.step for one in written], failed) == ([1, 2], 0)
    assert written[0].nbytes > 12
    assert CheckpointStore(tmp_path).newest()[1]["n"] == 2
    assert (tmp_path / "best").is_dir()


def test_a_full_disk_costs_a_warning_and_only_the_last_checkpoint_must_succeed(tmp_path, caplog):
    store = SlowStore(tmp_path)
    store.may_write.set()
    writer = CheckpointWriter(store)
    writer.save(1, tree(1), {})
    writer.save(2, tree(2), {})  # waits for the first
    assert writer.wait(20)
    store.error = OSError("No space left on device")
    with caplog.at_level(logging.WARNING):
        writer.save(3, tree(3), {})
        with pytest.raises(CheckpointError, match="No space left"):
            writer.close()
    assert "checkpoint of update 3 was not written" in caplog.text
    assert writer.finished()[1] == 1
    assert CheckpointStore(tmp_path).newest()[1]["n"] == 2
