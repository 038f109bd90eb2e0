"""The files beside a journal: their order is that of their numbers, whatever the clock says."""

import time

import numpy as np
import pytest

from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec
from worldloom_dist.replay import journal, snapshots
from worldloom_dist.replay.snapshots import ShardSnapshot, SnapshotStore


def weights(value):
    return np.arange(3), np.full((1, 4), float(value))


def snapshot_of(store, value):
    return ShardSnapshot(0, 0, 0, value, 0, weights_file=store.save_weights(*weights(value)))


def newest(directory):
    store = SnapshotStore(directory, 2)
    return store.load_weights(store.newest_weights)[1][0, 0]


def test_what_was_written_last_is_the_newest_when_the_clock_is_set_back(tmp_path, monkeypatch):
    hour = 3600 * 10**9
    now = [100 * hour]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    store = SnapshotStore(tmp_path, 2)
    for value in (1, 2, 3):
        store.set_snapshots([*store.snapshots, snapshot_of(store, value)])
        now[0] -= hour
        assert newest(tmp_path) == value
        assert all((tmp_path / one.weights_file).exists() for one in store.snapshots)
    assert len(list(tmp_path.glob("weights-*.rows"))) == 2
    again = SnapshotStore(tmp_path, 2)
    again.save_weights(*weights(4))
    assert newest(tmp_path) == 4


def test_files_of_earlier_versions_whose_numbers_are_times_are_older(tmp_path):
    store = SnapshotStore(tmp_path, 2)
    old = store.save_weights(*weights(1))
    (tmp_path / old).rename(tmp_path / "weights-1790000000000000000.rows")
    assert newest(tmp_path) == 1
    again = SnapshotStore(tmp_path, 2)
    assert again.save_weights(*weights(2)) == "weights-1790000000000000001.rows"
    assert newest(tmp_path) == 2


def test_a_name_that_a_snapshot_has_is_not_given_again(tmp_path):
    store = SnapshotStore(tmp_path, 2)
    first = snapshot_of(store, 1)
    store.set_snapshots([first])
    (tmp_path / first.weights_file).unlink()
    assert SnapshotStore(tmp_path, 2).save_weights(*weights(2)) != first.weights_file


def test_columns_of_all_rows_may_be_larger_than_a_segment_and_no_larger_than_the_rows(
    tmp_path, monkeypatch
):
    for module in (journal, snapshots):
        monkeypatch.setattr(module, "MOST_SEGMENT_BYTES", 2**16)
    monkeypatch.setattr(snapshots, "ENCODING_BYTES", 2**12)
    specs = {"latent": ArraySpec((1000,), "float32")}
    latents = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)
    store = SnapshotStore(tmp_path, 2)
    name = store.save_mutable(np.arange(100), {"latent": latents})
    row_ids, columns = store.load_mutable(name, specs, 100)
    np.testing.assert_array_equal(row_ids, np.arange(100))
    np.testing.assert_array_equal(columns["latent"], latents)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="has at most"):
        store.load_mutable(name, specs, 100)
