"""Checkpoints appear whole or not at all, hold what they were given, and never unpickle."""

import contextlib
import errno
import itertools
import json
import logging
import math
import os

import fsspec
import numpy as np
import pytest
import torch

from tests.worldloom.dying import DeathError, dying
from worldloom.core.exceptions import CheckpointError
from worldloom.training import tree_files
from worldloom.training.checkpoints import CheckpointStore
from worldloom.training.manifests import read_manifest
from worldloom.training.remote_checkpoints import RemoteCheckpointStore, open_store
from worldloom.training.tree_files import load_tree, load_tree_file, save_tree, save_tree_file


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
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_flipped_byte_or_a_cut_file_is_found(tmp_path, name, damage):
    save_tree(tmp_path / "c", tree())
    path = tmp_path / "c" / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:  # a digit or a number, so that the file is one of its kind still
        place = max(data.rfind(digit) for digit in b"0123456789") if name == "manifest.json" else -1
        data[place] ^= 1
    path.write_bytes(data)
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


def test_a_damaged_checkpoint_of_a_later_step_takes_no_place_from_a_whole_one(tmp_path):
    """A run went on from an older one than its newest, which is damaged, and keeps one."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(5, {"step": 5})
    (tmp_path / "step-000000000005" / "tree.json").write_text("{}")
    store.save(3, {"step": 3})
    assert store.newest()[1]["step"] == 3
    store.save(4, {"step": 4})
    assert store.newest()[1]["step"] == 4
    store.save(5, {"step": 5})
    assert [f.name for f in store.folders()] == ["step-000000000005"]
    assert store.newest()[1]["step"] == 5


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


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path, monkeypatch):
    """A run would begin again, and drop its rows: the disk is away, or another user's."""
    assert CheckpointStore(tmp_path / "new").folders() == []
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "checkpoints")
    for name in ("file", "link"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be listed"):
            CheckpointStore(tmp_path / name).newest()

    def refused(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(CheckpointError, match=r"Permission denied.*give the rights to read it"):
        CheckpointStore(tmp_path).newest()


def test_best_is_replaced_only_by_a_better_score(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    assert store.mark_best(store.save(1, {"step": 1}), score=5.0)
    assert not store.mark_best(store.save(2, {"step": 2}), score=4.0)
    assert load_tree(tmp_path / "best")["step"] == 1
    assert store.mark_best(store.save(3, {"step": 3}), score=6.0)
    assert load_tree(tmp_path / "best")["step"] == 3
    assert json.loads((tmp_path / "best" / "manifest.json").read_text())["facts"]["score"] == 6.0


def test_a_checkpoint_that_replaces_one_and_dies_leaves_the_old_or_the_new_one(
    tmp_path, monkeypatch
):
    found = []
    for at in range(24):
        save_tree(tmp_path / "c", {"step": 1, "w": torch.ones(2)})
        with dying(monkeypatch, at):
            save_tree(tmp_path / "c", {"step": 2, "w": torch.zeros(2)}, {"step": 2})
        found.append(load_tree(tmp_path / "c")["step"])
        assert read_manifest(tmp_path / "c")["facts"] == ({"step": 2} if found[-1] == 2 else {})
    assert found == sorted(found)
    assert set(found) == {1, 2}


def test_a_store_that_dies_while_it_marks_the_best_or_drops_the_old_keeps_a_best_and_whole_ones(
    tmp_path, monkeypatch
):
    for at in range(40):
        store = CheckpointStore(tmp_path / str(at), keep=1)
        store.mark_best(store.save(1, {"step": 1}), 1.0)
        with dying(monkeypatch, at):
            store.mark_best(store.save(2, {"step": 2}), 2.0)
        steps = [load_tree(folder)["step"] for folder in store.folders()]  # none is half there
        assert 2 in steps or 1 in steps
        assert load_tree(store.find("best"))["step"] == round(
            store.facts(store.find("best"))["score"]
        )


def test_a_file_that_is_replaced_by_a_writer_that_dies_or_fails_is_the_old_or_the_new_one(
    tmp_path, monkeypatch
):
    path = tmp_path / "c.pt"
    save_tree_file(path, {"step": 1})
    for at in range(6):
        with dying(monkeypatch, at):
            save_tree_file(path, {"step": 2})
        assert load_tree_file(path)[0]["step"] in (1, 2)
    save_tree_file(path, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tree_files, "save_file", full)
    for save, place in ((save_tree_file, path), (save_tree, tmp_path / "c")):
        with pytest.raises(
            CheckpointError, match=r"could not be written .*No space left.*unchanged"
        ):
            save(place, {"step": 2})
    assert load_tree_file(path)[0]["step"] == 1
    assert [found.name for found in tmp_path.iterdir()] == ["c.pt"]


def test_numbers_that_json_lacks_come_back_and_manifests_stay_json(tmp_path):
    def strict(text):
        raise ValueError(text)

    save_tree(
        tmp_path / "c",
        {"best": math.inf, "worst": [-math.inf, np.float32("nan")]},
        {"score": math.nan, "list": [math.inf]},
    )
    loaded = load_tree(tmp_path / "c")
    assert (loaded["best"], loaded["worst"][0]) == (math.inf, -math.inf)
    assert math.isnan(loaded["worst"][1])
    for name in ("tree.json", "manifest.json"):
        json.loads((tmp_path / "c" / name).read_text(), parse_constant=strict)
    assert read_manifest(tmp_path / "c")["facts"] == {"score": None, "list": [None]}
    save_tree_file(tmp_path / "c.pt", {"best": math.inf}, {"score": math.nan})
    assert load_tree_file(tmp_path / "c.pt") == ({"best": math.inf}, {"score": None})


def test_facts_of_numpy_are_plain_numbers_and_others_are_refused(tmp_path):
    save_tree(
        tmp_path / "c",
        {},
        {"score": np.float32(0.5), "steps": np.int64(3), "loss": torch.tensor(0.25)},
    )
    assert read_manifest(tmp_path / "c")["facts"] == {"score": 0.5, "steps": 3, "loss": 0.25}
    for save, place in ((save_tree, tmp_path / "d"), (save_tree_file, tmp_path / "d.pt")):
        with pytest.raises(CheckpointError, match="not JSON serializable"):
            save(place, {}, {"what": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_score_that_is_no_number_is_never_the_best_and_a_damaged_best_is_replaced(
    tmp_path, caplog
):
    for store in (
        CheckpointStore(tmp_path / "here"),
        RemoteCheckpointStore("memory://best-of-no-number"),
    ):
        folder = store.save(1, {"step": 1})
        assert not store.mark_best(folder, math.nan)
        assert store.mark_best(folder, 1.0)
        assert not store.mark_best(folder, math.nan)
        assert store.facts(store.find("best"))["score"] == 1.0
    assert "cannot be the best" in caplog.text
    (tmp_path / "here" / "best" / "manifest.json").write_text("{")
    assert CheckpointStore(tmp_path / "here").mark_best(
        tmp_path / "here" / "step-000000000001", 0.5
    )


def test_behind_a_url_a_writer_that_dies_at_any_moment_leaves_the_old_or_the_new_best(monkeypatch):
    files = fsspec.filesystem("memory")
    for at in range(12):
        store = RemoteCheckpointStore(f"memory://dying-{at}")
        for step in (1, 2):
            store.save(step, {"step": step, "w": torch.full((2,), float(step))})
        store.mark_best(store.folders()[1], 1.0)
        calls = itertools.count()

        def deadly(change, calls=calls, at=at):
            def call(*args, **kwargs):
                if next(calls) >= at:
                    raise DeathError
                return change(*args, **kwargs)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(DeathError):
            for name in ("pipe_file", "rm_file", "copy", "rm"):
                patch.setattr(files, name, deadly(getattr(files, name)))
            store.mark_best(store.folders()[0], 2.0)
            store.save(2, {"step": 2, "w": torch.full((2,), 2.5)})
        best = load_tree(store.find("best"))
        assert (
            float(best["w"][0]) == best["step"] == round(store.facts(store.find("best"))["score"])
        )
        assert float(load_tree(store.find("step-000000000002"))["w"][0]) in (2.0, 2.5)
        store.mark_best(store.save(3, {"step": 3}), 3.0)
        assert len(files.ls(f"{store.root}/best", detail=False)) == 3


def test_remote_checkpoints_of_earlier_versions_are_read_and_may_be_the_best(tmp_path):
    store = RemoteCheckpointStore("memory://of-an-earlier-version")
    save_tree(tmp_path / "c", {"step": 1}, {"step": 1})
    for path in (tmp_path / "c").iterdir():
        store.files.pipe_file(f"{store.root}/step-000000000001/{path.name}", path.read_bytes())
    (folder,) = store.folders()
    assert load_tree(store.find(folder.name))["step"] == 1
    assert store.mark_best(folder, 1.0)
    assert load_tree(store.find("best"))["step"] == 1


def test_a_file_url_is_a_folder_like_any_other(tmp_path):
    store = open_store(f"file://{tmp_path}/c")
    assert type(store) is CheckpointStore
    assert load_tree(store.save(1, {"step": 1}))["step"] == 1


@pytest.fixture
def remote(request):
    """A place with three checkpoints."""
    store = RemoteCheckpointStore(f"memory://{request.node.name}", keep=3)
    for step in (100, 200, 300):
        store.save(step, tree())
    return store


def failing(error):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("refused"), RuntimeError("no credentials"), TypeError("odd")]
)
def test_a_place_that_is_away_is_not_taken_for_an_empty_one(remote, error, monkeypatch):
    for name in ("ls", "cat_file"):
        with monkeypatch.context() as away:
            away.setattr(remote.files, name, failing(error))
            away.setattr(remote.files, "exists", lambda *_: False)
            with pytest.raises(CheckpointError, match="cannot be used") as told:
                remote.newest()
            assert str(error) in str(told.value)
    assert remote.newest()[0].name == "step-000000000300"


def test_a_step_that_is_saved_stays_though_later_ones_are_there(remote):
    saved = remote.save(50, tree())
    assert remote.size(saved) > 0
    assert [int(folder.name[5:]) for folder in remote.folders()] == [300, 200, 100, 50]


def test_what_a_failed_upload_left_goes_with_the_next_one(remote, monkeypatch):
    pipe_file = remote.files.pipe_file

    def without_manifests(path, content):
        if path.endswith("manifest.json"):
            raise ConnectionResetError("cut off")
        pipe_file(path, content)

    with monkeypatch.context() as failed:
        failed.setattr(remote.files, "pipe_file", without_manifests)
        with pytest.raises(CheckpointError, match="cut off"):
            remote.save(400, tree())
    remote.save(500, tree())
    steps = {path.split("/step-")[1].split("/")[0] for path in remote.files.find(remote.root)}
    assert sorted(int(step) for step in steps) == [200, 300, 500]


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {}}', '{"files": {"tree.json": 3}}'])
def test_a_manifest_behind_a_url_that_is_none_is_no_checkpoint(remote, text):
    remote.files.pipe_file(f"{remote.root}/step-000000000300/manifest.json", text.encode())
    assert remote.newest()[0].name == "step-000000000200"
    assert remote.size(remote.root / "step-000000000300") == 0


def test_a_best_score_that_is_no_number_is_no_comparison(tmp_path):
    stores = CheckpointStore(tmp_path), RemoteCheckpointStore("memory://score-of-text")
    for store in stores:
        store.save(1, tree())
        store.mark_best(store.folders()[0], 3.0)
        assert store.best_score() == 3.0
    for path in [tmp_path / "best/manifest.json"]:
        path.write_text(path.read_text().replace('"score": 3.0', '"score": "x"'))
    files = stores[1].files
    manifest = f"{stores[1].root}/best/manifest.json"
    files.pipe_file(manifest, files.cat_file(manifest).replace(b'"score": 3.0', b'"score": "x"'))
    assert [store.best_score() for store in stores] == [-math.inf, -math.inf]
