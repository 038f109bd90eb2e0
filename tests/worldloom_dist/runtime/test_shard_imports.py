"""A shard stores the files that its run is told of while it runs: a bad one costs only itself, a
full disk only time.
"""

import asyncio
import contextlib
import fcntl
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from worldloom.core.exceptions import CheckpointError, StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import rows_from_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.replay import imports
from worldloom_dist.replay.formats import episode_files
from worldloom_dist.replay.formats.episode_files import write_episode_file
from worldloom_dist.replay.imports import ImportList
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.runtime.shard_role import import_new

ENV = EnvSpec(name="toy", obs={"obs": ArraySpec((2,))}, action={"action": ArraySpec((1,))})
STEPS = 20


def write_good(path):
    obs = np.ones((STEPS + 1, 2), np.float32)
    action = np.zeros((STEPS, 1), np.float32)
    zeros = np.zeros(STEPS)
    end = np.arange(STEPS) == STEPS - 1
    rows = rows_from_gym(
        {"obs": obs}, {"action": action}, zeros.astype(np.float32), zeros.astype(bool), end
    )
    write_episode_file(str(path), ENV, [rows])
    return str(path)


@pytest.fixture
def role(tmp_path):
    """What a shard's role needs to import files, with a shard that has a disk."""
    shard = ReplayShard(
        0,
        ENV.columns(),
        SamplingSpec(batch_size=2, length=3),
        capacity_rows=500,
        directory=tmp_path / "replay" / "shard-0",
    )
    imports = ImportList(tmp_path)
    own = {
        "imports": imports,
        "shard": shard,
        "_index": 0,
        "_num_shards": 1,
        "is_finalized": False,
        "left_out": {},
    }
    return SimpleNamespace(**own, _at_work=contextlib.nullcontext)


def look(role):
    """What the role does once a second; returns the rows stored by then."""
    asyncio.run(import_new(role))
    return role.shard.row_counters().inserted


def test_a_bad_file_costs_only_itself(tmp_path, role, caplog):
    (tmp_path / "bad.npz").write_bytes(b"no file of episodes")
    unknown = tmp_path / "f.csv"  # of an unknown kind
    sources = [tmp_path / "gone.npz", tmp_path / "bad.npz", unknown]
    role.imports.add([*map(str, sources), write_good(tmp_path / "good.npz")])
    assert look(role) == STEPS + 1
    for source in sources:
        assert f"{source} was not imported" in caplog.text
    assert set(role.left_out) == set(map(str, sources)), "the driver hears of them"
    assert look(role) == STEPS + 1, "and that was all"


def test_of_a_file_that_is_bad_in_its_middle_nothing_is_stored(tmp_path, role):
    data = tmp_path / "data.npz"
    write_good(data)
    arrays = dict(np.load(data))
    arrays["rewards"][STEPS // 2] = np.nan
    np.savez(data, **arrays)
    role.imports.add([str(data)])
    assert look(role) == 0
    assert "finite" in role.left_out[str(data)]


def test_whatever_a_reader_raises_costs_only_its_file(tmp_path, role, monkeypatch):
    good = write_good(tmp_path / "good.npz")
    role.imports.add([write_good(tmp_path / "bad.npz"), good])
    real = episode_files.open_as

    def fail(kind, source):
        if source != good:
            raise AttributeError("'DoubleArray' object has no attribute 'flatten'")
        return real(kind, source)

    monkeypatch.setattr(episode_files, "open_as", fail)
    assert look(role) == STEPS + 1
    assert "AttributeError" in role.left_out[str(tmp_path / "bad.npz")]


def test_a_file_for_which_the_disk_had_no_room_is_stored_later(tmp_path, role, caplog, monkeypatch):
    role.imports.add([write_good(tmp_path / "good.npz")])
    real = role.shard.append

    def refuse(chunk):
        raise StateError("no space left")

    monkeypatch.setattr(role.shard, "append", refuse)
    assert look(role) == 0
    assert "is not stored yet" in caplog.text
    monkeypatch.setattr(role.shard, "append", real)
    assert look(role) == 0, "not at once again"
    later = time.monotonic() + imports.RETRY_AFTER_S
    monkeypatch.setattr(imports, "time", SimpleNamespace(monotonic=lambda: later))
    assert look(role) == STEPS + 1
    assert role.imports.take_new() == []


def test_nothing_is_imported_after_a_shards_last_word(tmp_path, role):
    role.imports.add([write_good(tmp_path / "good.npz")])
    role.is_finalized = True
    assert look(role) == 0


def test_a_damaged_list_does_not_forget_the_files_of_the_command_line(tmp_path):
    (tmp_path / "imports.json").write_text("{")
    files = ImportList(tmp_path, ["a.npz"])
    with pytest.raises(CheckpointError, match=r"imports\.json"):
        files.take_new()
    assert files.take_new() == ["a.npz"]
    (tmp_path / "imports.json").write_text(json.dumps({"files": ["b.npz"]}))
    assert files.take_new() == ["b.npz"]


def test_of_two_imports_at_once_neither_forgets_the_file_of_the_other(tmp_path, monkeypatch):
    """The second one comes while the first has read the list, and has not yet written it."""
    is_next = threading.Event()  # it waits for its turn, or is done
    flock = fcntl.flock
    read = ImportList.read

    def second():
        ImportList(tmp_path).add(["b.npz"])
        is_next.set()

    other = threading.Thread(target=second)

    def waiting(descriptor, how):
        if threading.current_thread() is other:
            is_next.set()
        flock(descriptor, how)

    def reading(self):
        found = read(self)
        if threading.current_thread() is not other:
            other.start()
            assert is_next.wait(60)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ImportList, "read", reading)
        patch.setattr(fcntl, "flock", waiting)
        ImportList(tmp_path).add(["a.npz"])
        other.join()
    assert sorted(ImportList(tmp_path).read()) == ["a.npz", "b.npz"]
