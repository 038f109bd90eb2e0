"""A shard whose disk is full, slow, or wrong about its counters."""

import os
import threading

import numpy as np
import pytest

from tests.worldloom_dist.small_runs import start
from worldloom.core.exceptions import StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.shard import ReplayShard

COLUMNS = EnvSpec(
    name="counting", obs={"obs": ArraySpec((2,), "int64")}, action={"action": ArraySpec((1,))}
).columns()
SAMPLING = SamplingSpec(batch_size=4, length=3, cross_episodes=True)
ROWS = 6


def counting_chunk(slot, seq):
    rows = {name: spec.zeros(ROWS) for name, spec in COLUMNS.items()}
    rows["obs"] = np.stack([np.full(ROWS, slot), np.arange(seq * ROWS, (seq + 1) * ROWS)], axis=1)
    rows["is_first"][0] = seq == 0
    return make_chunk(StreamId(slot, 0, 0), seq, NO_POLICY, rows)


def open_shard(folder, **kwargs):
    return ReplayShard(0, COLUMNS, SAMPLING, capacity_rows=500, directory=folder, **kwargs)


def fill(shard, seq):
    """Append until the disk refuses; returns the number of the refused chunk, and what was said."""
    while seq < 60:
        try:
            shard.append(counting_chunk(0, seq))
        except StateError as error:
            return seq, str(error)
        seq += 1
    raise AssertionError("the disk took everything")


@pytest.mark.parametrize(
    ("segment_bytes", "limit"),
    [(1 << 20, 4000), (300, 100)],
    ids=["in a segment", "at its beginning"],
)
def test_a_disk_that_is_really_full_refuses_chunks_and_takes_them_again_when_there_is_room(
    tmp_path, limit_files, segment_bytes, limit
):
    shard = open_shard(tmp_path, segment_bytes=segment_bytes)
    for seq in range(3):
        shard.append(counting_chunk(0, seq))
    try:
        limit_files(limit)
        acknowledged, problem = fill(shard, 3)
        assert fill(shard, acknowledged) == (acknowledged, problem)
    finally:
        limit_files(-1)
    assert "nothing is acknowledged, free space" in problem
    assert shard.row_counters().inserted == ROWS * acknowledged
    assert shard.append(counting_chunk(0, acknowledged))
    assert not list(tmp_path.glob("*.tmp")), "half a segment was cleaned up"
    shard.close()
    again = open_shard(tmp_path, segment_bytes=segment_bytes)
    assert (again.recovered.corrupt_bytes, again.recovered.torn_bytes) == (0, 0)
    assert again.row_counters().inserted == ROWS * (acknowledged + 1)
    obs = again.sample(SampleRequest(100, (0,))).columns["obs"][:, :, 1]
    assert (np.diff(obs, axis=1) == 1).all()


def test_a_slow_disk_delays_acknowledgements_and_nothing_else_and_writers_share_its_syncs(
    tmp_path, monkeypatch
):
    shard = open_shard(tmp_path, durability="fsync")
    shard.append(counting_chunk(9, 0))
    real = os.fsync
    may_sync = threading.Event()
    syncing = threading.Event()
    calls = []

    def slow(file):
        calls.append(file)
        syncing.set()
        assert may_sync.wait(30)
        real(file)

    monkeypatch.setattr(os, "fsync", slow)
    acknowledged = []

    def write(slot):
        shard.append(counting_chunk(slot, 0))
        acknowledged.append(slot)

    writers = [threading.Thread(target=write, args=(slot,)) for slot in range(8)]
    for writer in writers:
        writer.start()
    assert syncing.wait(30)
    while shard.row_counters().inserted < 9 * ROWS:  # all wrote their chunk; none may know that yet
        assert not acknowledged
    assert shard.sample(SampleRequest(4, (0,))).row_ids.shape == (4, 3)
    assert not acknowledged
    may_sync.set()
    for writer in writers:
        writer.join(30)
    assert sorted(acknowledged) == list(range(8))
    assert len(calls) <= 3, "one sync covers all that was written before it"


def test_a_failed_sync_acknowledges_nothing_and_the_shard_asks_to_be_opened_anew(
    tmp_path, monkeypatch
):
    shard = open_shard(tmp_path, durability="fsync")
    shard.append(counting_chunk(0, 0))
    assert not shard.failure

    def broken(file):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StateError, match="cannot be trusted"):
            shard.append(counting_chunk(0, 1))
    assert "Input/output error" in shard.failure
    with pytest.raises(StateError):
        shard.append(counting_chunk(0, 2))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    shard.close()
    again = open_shard(tmp_path, durability="fsync")
    assert not again.failure
    again.append(counting_chunk(0, 1))  # it had reached the file, or it is stored now
    assert again.append(counting_chunk(0, 2))
    assert again.row_counters().inserted == 3 * ROWS


def test_what_is_read_from_memory_is_on_the_disk_before_a_chunk_that_came_again_is_acknowledged(
    tmp_path, monkeypatch
):
    shard = open_shard(tmp_path, durability="fsync", segment_bytes=1000)
    shard.append(counting_chunk(0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(shard.journal, "sync", lambda: None)  # it is killed before
        seq = 0
        while not shard.journal.needs_rotation:
            seq += 1
            shard.append(counting_chunk(0, seq))
        path = shard.journal.path(shard.journal.position.segment)
        shard.close()
    before = path.stat()
    synced = {}
    real = os.fsync

    def noting(file):
        real(file)
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size

    monkeypatch.setattr(os, "fsync", noting)
    again = open_shard(tmp_path, durability="fsync", segment_bytes=1000)
    assert not again.append(counting_chunk(0, seq))
    after = path.stat()
    assert after.st_ino != before.st_ino, "pages that are clean by a failed sync are not written"
    assert synced[after.st_ino] == after.st_size == before.st_size


def test_a_snapshot_is_written_down_when_the_journal_reaches_it_on_the_disk(tmp_path, monkeypatch):
    shard = open_shard(tmp_path, durability="fsync")
    shard.append(counting_chunk(0, 0))
    marks = tmp_path / "marks.json"

    def before_it():
        assert not marks.exists()

    monkeypatch.setattr(shard.journal, "sync", before_it)
    shard.snapshot()
    assert marks.exists()


def test_a_chunk_that_cannot_be_stored_once_it_is_journaled_costs_no_other_stream_a_row(
    tmp_path, monkeypatch
):
    shard = open_shard(tmp_path, segment_bytes=300)
    shard.append(counting_chunk(0, 0))

    def full(*args, **kwargs):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(shard.rows.buffer, "append", full)
        with pytest.raises(MemoryError):
            shard.append(counting_chunk(0, 1))
    assert "no room" in shard.failure
    for refused in (lambda: shard.append(counting_chunk(1, 0)), shard.snapshot):
        with pytest.raises(StateError, match="no room"):
            refused()
    shard.close()
    again = open_shard(tmp_path, segment_bytes=300)
    assert again.append(counting_chunk(1, 0))
    again.append(counting_chunk(0, 1))
    counters = again.row_counters()
    assert counters.inserted == 3 * ROWS
    again.close()
    assert open_shard(tmp_path, segment_bytes=300).row_counters() == counters


def test_who_waits_for_a_sync_that_fails_is_not_acknowledged_by_the_next_one(tmp_path, monkeypatch):
    """The kernel tells a failed write once; the next fsync of the same file succeeds."""
    journal = Journal(tmp_path, fsync=True)
    assert not list(journal.read())
    journal.rotate(b"head")
    begun, may_fail = threading.Event(), threading.Event()
    told = []

    def fails_once(file):
        if not told:
            told.append(file)
            begun.set()
            assert may_fail.wait(10)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails_once)
    results = []
    both_appended = threading.Event()

    def write():
        journal.append(2, [b"row"])
        if begun.is_set():
            both_appended.set()
        try:
            journal.sync()
        except StateError as error:
            results.append(str(error))
        else:
            results.append("acknowledged")

    first = threading.Thread(target=write)
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=write)
    second.start()
    assert both_appended.wait(10)
    may_fail.set()
    first.join(10)
    second.join(10)
    assert len(results) == 2
    assert all("Input/output error" in text for text in results)


def test_a_segment_that_cannot_be_opened_leaves_no_foreign_file_open(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    assert not list(journal.read())
    journal.rotate(b"head")
    real = os.open

    def full(path, *args):
        if str(path).endswith("00000001.wal"):
            raise OSError(24, "Too many open files")
        return real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(StateError, match="Too many open files"):
            journal.rotate(b"head")
    with pytest.raises(StateError, match="Too many open files"):
        journal.append(2, [b"row"])
    other = real(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
    journal.close()
    os.close(other)  # which is still ours


def test_a_head_that_is_as_large_as_a_segment_makes_no_segment_of_every_record(tmp_path):
    journal = Journal(tmp_path, segment_bytes=100)
    assert not list(journal.read())
    journal.rotate(bytes(1000))
    journal.append(2, [b"row"])
    assert not journal.needs_rotation
    journal.close()
    again = Journal(tmp_path, segment_bytes=100)
    assert len(list(again.read())) == 2
    assert not again.needs_rotation
    again.append(2, [bytes(100)])
    assert again.needs_rotation
    again.close()


def test_books_that_do_not_add_up_stop_a_checkpoint(tmp_path):
    run = start(tmp_path / "run", "--env-steps", "60")
    run.begin()
    while run.report.env_steps < 30:
        run.turn()
    run.runtime.checkpoint()
    run.runtime.replay.shards[0].rows.counters.evicted += 1
    with pytest.raises(StateError, match="counters of replay do not add up"):
        run.runtime.checkpoint()
    run.runtime.close()
