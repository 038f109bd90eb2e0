"""Rows that observe their own step number go through chunk, shard and sample: none lost, doubled or
shifted, whatever dies.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from worldloom.core.exceptions import BufferError, CheckpointError, ShapeMismatchError, StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom.data.files_apart import FilesApart
from worldloom.data.selectors import Uniform
from worldloom_dist.ports import RowCounters, SampleRequest
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.replay.snapshots import ShardSnapshot

COLUMNS = EnvSpec(
    name="counting", obs={"obs": ArraySpec((2,), "int64")}, action={"action": ArraySpec((1,))}
).columns()
LATENT = COLUMNS | {"latent": ArraySpec((2,), "uint16")}
SAMPLING = SamplingSpec(batch_size=4, length=3)
EPISODE = 7


def counting_chunk(slot, seq, size=5, *, columns=COLUMNS, version=NO_POLICY):
    """Chunk ``seq`` of a stream whose row n observes (slot, n); an episode has EPISODE rows."""
    number = np.arange(seq * size, (seq + 1) * size)
    rows = {name: spec.zeros(size) for name, spec in columns.items()}
    rows["obs"] = np.stack([np.full(size, slot), number], axis=1)
    rows["is_first"] = number % EPISODE == 0
    rows["truncated"] = number % EPISODE == EPISODE - 1
    rows["reward"] = np.where(rows["is_first"], 0, number).astype(np.float32)
    return make_chunk(StreamId(slot, 0, 0), seq, version, rows)


def open_shard(directory, *, capacity=1000, columns=COLUMNS, sampling=SAMPLING, **kwargs):
    return ReplayShard(3, columns, sampling, capacity_rows=capacity, directory=directory, **kwargs)


def numbers_of(shard, *, windows=3000, seed=0):
    """Every window found by sampling, as tuples (slot, first number), after checking that rows are
    in order.
    """
    sampled = shard.sample(SampleRequest(windows, (seed,)))
    obs = sampled.columns["obs"]
    assert (np.diff(obs[:, :, 1], axis=1) == 1).all()
    assert (obs[:, :, 0] == obs[:, :1, 0]).all()
    assert not sampled.columns["is_first"][:, 1:].any()
    np.testing.assert_array_equal(
        sampled.columns["reward"], np.where(sampled.columns["is_first"], 0, obs[:, :, 1])
    )
    return {tuple(first) for first in obs[:, 0].tolist()}


def expected_starts(chunks, size=5, window=3):
    last = chunks * size - window
    return {n for n in range(last + 1) if n % EPISODE <= EPISODE - window}


def test_every_counting_row_comes_out_once_and_in_its_place(tmp_path):
    shard = open_shard(tmp_path)
    for seq in range(20):
        for slot in (0, 1):
            assert shard.append(counting_chunk(slot, seq))
    starts = {(slot, n) for slot in (0, 1) for n in expected_starts(20)}
    assert shard.live_windows() == len(starts)
    assert numbers_of(shard) == starts
    steps = 2 * (100 - len(range(0, 100, EPISODE)))
    assert shard.row_counters() == RowCounters(
        inserted=200,
        stored=200,
        agent_steps=steps,
        payload_bytes=shard.row_counters().payload_bytes,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 2**62 - 1},
        {"seq": -1},
        {"version": PolicyVersion(0, 2**31)},
        {"version": PolicyVersion(0, 2**63)},
        {"version": PolicyVersion(2**62, 0)},
        {"stream": StreamId(2**62, 0, 0)},
        {"stream": StreamId(0, 2**62, 0)},
        {"stream": StreamId(0, 0, -1)},
    ],
)
def test_a_name_that_no_restart_could_read_is_refused_before_the_journal(tmp_path, changes):
    shard = open_shard(tmp_path)
    with pytest.raises(ShapeMismatchError, match="of chunk"):
        shard.append(dataclasses.replace(counting_chunk(0, 0), **changes))
    assert shard.append(counting_chunk(0, 0))
    counters = shard.row_counters()
    shard.close()
    assert open_shard(tmp_path).row_counters() == counters


def test_a_late_chunk_is_new_and_one_that_comes_again_is_not(tmp_path):
    shard = open_shard(tmp_path)
    for seq, is_new in ((0, True), (2, True), (1, True), (1, False), (0, False), (3, True)):
        assert shard.is_new(counting_chunk(0, seq)) == is_new
        assert shard.append(counting_chunk(0, seq)) == is_new


@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_a_restarted_shard_is_as_it_was(tmp_path, durability):
    shard = open_shard(tmp_path, capacity=60, durability=durability)
    for seq in range(30):
        shard.append(counting_chunk(0, seq, version=PolicyVersion(1, seq)))
    shard.append(counting_chunk(0, 29))
    before = shard.sample(SampleRequest(50, (1, 2)))
    counters = shard.row_counters()
    shard.close()
    again = open_shard(tmp_path, capacity=60, durability=durability)
    assert (
        again.row_counters()
        == counters
        == dataclasses.replace(counters, inserted=150, stored=60, evicted=90, duplicate=5)
    )
    after = again.sample(SampleRequest(50, (1, 2)))
    for name in ("row_ids", "shard", "versions", "inserted_s"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name], column)
    assert (again.recovered.rows, again.recovered.torn_bytes, again.recovered.lost_rows) == (
        60,
        0,
        0,
    )


def test_a_retried_chunk_is_ignored_and_counted_also_after_a_restart(tmp_path):
    shard = open_shard(tmp_path, capacity=20, segment_bytes=600)
    for seq in range(40):
        assert shard.append(counting_chunk(0, seq))
    assert not shard.append(counting_chunk(0, 39))
    shard.close()
    again = open_shard(tmp_path, capacity=20, segment_bytes=600)
    assert not again.append(counting_chunk(0, 39))
    assert not again.append(counting_chunk(0, 0))
    assert again.append(counting_chunk(0, 40))
    counters = again.row_counters()
    assert (counters.inserted, counters.stored, counters.duplicate) == (205, 20, 15)
    assert counters.is_balanced


def test_the_journal_shrinks_as_rows_are_evicted(tmp_path):
    shard = open_shard(tmp_path, capacity=30, segment_bytes=2000)
    for seq in range(200):
        shard.append(counting_chunk(0, seq))
    files = sorted(tmp_path.glob("segment-*.wal"))
    assert len(files) <= 5
    assert files[0].name != "segment-00000000.wal"
    shard.close()
    again = open_shard(tmp_path, capacity=30, segment_bytes=2000)
    assert again.row_counters().inserted == 1000
    assert numbers_of(again) == {(0, n) for n in expected_starts(200) if n >= 970}


def test_a_missing_chunk_breaks_the_stream_and_is_welcome_when_it_comes_late(tmp_path):
    shard = open_shard(tmp_path)
    for seq in (0, 1, 3, 4):
        assert shard.append(counting_chunk(0, seq))
    shard.close()
    again = open_shard(tmp_path)
    assert again.append(counting_chunk(0, 2))
    assert not again.append(counting_chunk(0, 2))
    assert not again.append(counting_chunk(0, 3))
    assert again.append(counting_chunk(0, 5))
    touches_late_chunk = {n for n in range(30) if (n // 5 == 2) != ((n + 2) // 5 == 2)}
    assert numbers_of(again) == {(0, n) for n in expected_starts(6) - touches_late_chunk}
    assert again.row_counters().inserted == 30


def test_a_late_chunk_is_welcome_even_when_the_journal_of_its_gap_was_deleted(tmp_path):
    shard = open_shard(tmp_path, capacity=20, segment_bytes=600)
    for seq in [0, 1, *range(4, 40)]:
        shard.append(counting_chunk(0, seq))
    shard.close()
    assert not (tmp_path / "segment-00000000.wal").exists()
    again = open_shard(tmp_path, capacity=20, segment_bytes=600)
    assert [again.append(counting_chunk(0, seq)) for seq in (2, 1, 2, 3, 3, 4)] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_equal_requests_give_equal_windows_and_other_seeds_others(tmp_path):
    shard = open_shard(tmp_path)
    for seq in range(20):
        shard.append(counting_chunk(0, seq))
    a, b, c = (shard.sample(SampleRequest(30, seed)).row_ids for seed in ((1, 2), (1, 2), (1, 3)))
    assert (a == b).all()
    assert (a != c).any()


def test_an_empty_shard_says_why_it_cannot_sample(tmp_path):
    with pytest.raises(BufferError, match="0 rows but no 3 consecutive"):
        open_shard(tmp_path).sample(SampleRequest(1, (0,)))


CHILD = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_shard as helpers
    shard = helpers.open_shard(Path(sys.argv[2]), capacity=400, segment_bytes=20_000)
    seq = shard.next_seq(helpers.StreamId(0, 0, 0))
    while True:
        shard.append(helpers.counting_chunk(0, seq))
        sys.stdout.write(f"{seq}\\n")
        sys.stdout.flush()
        seq += 1
"""


def test_kill_dash_nine_loses_no_acknowledged_row(tmp_path):
    acknowledged = -1
    for _ in range(2):
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(CHILD),
            os.path.dirname(__file__),
            str(tmp_path),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            goal = acknowledged + 100
            while acknowledged < goal:
                acknowledged = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            acknowledged = max(
                [acknowledged, *(int(line) for line in child.stdout.read().split("\n")[:-1])]
            )
    shard = open_shard(tmp_path, capacity=400, segment_bytes=20_000)
    counters = shard.row_counters()
    chunks = counters.inserted // 5
    assert counters.inserted % 5 == 0
    assert acknowledged + 1 <= chunks <= acknowledged + 3
    assert counters.is_balanced
    assert counters.lost_acked == 0
    assert not shard.append(counting_chunk(0, acknowledged))
    assert numbers_of(shard, windows=8000) == {
        (0, n) for n in expected_starts(chunks) if n >= chunks * 5 - 400
    }


def test_a_torn_tail_is_ignored_and_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    shard = open_shard(tmp_path)
    assert "shard-" not in caplog.text, "an empty disk is no news"
    for seq in range(4):
        shard.append(counting_chunk(0, seq))
    shard.close()
    [file] = tmp_path.glob("segment-*.wal")
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 9)
    again = open_shard(tmp_path)
    assert again.recovered.torn_bytes > 0
    assert "15 rows in 3 chunks are back" in caplog.text
    assert (
        f"{again.recovered.torn_bytes} bytes of a record that was never acknowledged were left out"
        in caplog.text
    )
    assert again.row_counters().inserted == 15
    assert again.append(counting_chunk(0, 3))
    assert numbers_of(again) == {(0, n) for n in expected_starts(4)}


def test_a_full_disk_refuses_the_chunk_and_a_retry_succeeds(tmp_path, monkeypatch):
    shard = open_shard(tmp_path)
    shard.append(counting_chunk(0, 0))
    real = os.writev

    def full(file, parts):
        real(file, [b"".join(parts)[:11]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(StateError, match="No space left"):
        shard.append(counting_chunk(0, 1))
    assert shard.row_counters().inserted == 5
    monkeypatch.setattr(os, "writev", real)
    assert shard.append(counting_chunk(0, 1))
    shard.close()
    again = open_shard(tmp_path)
    assert again.recovered.torn_bytes == again.recovered.corrupt_bytes == 0
    assert numbers_of(again) == {(0, n) for n in expected_starts(2)}


def run_on(shard, start, stop):
    for seq in range(start, stop):
        shard.append(counting_chunk(0, seq, columns=shard.columns))
        windows = shard.sample(SampleRequest(4, (seq,)))
        if "latent" in shard.columns:
            shard.write_back(
                windows.row_ids, {"latent": np.full((*windows.row_ids.shape, 2), seq, np.uint16)}
            )


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("online", [False, True])
def test_rollback_to_a_snapshot_makes_the_run_go_on_bit_equal(tmp_path, restart, online):
    sampling = SamplingSpec(batch_size=4, length=3, online=online)
    options = {"capacity": 40, "columns": LATENT, "sampling": sampling, "segment_bytes": 1500}
    whole, cut = (open_shard(tmp_path / name, **options) for name in ("whole", "cut"))
    run_on(whole, 0, 60)
    run_on(cut, 0, 25)
    snapshot = ShardSnapshot(**json.loads(json.dumps(dataclasses.asdict(cut.snapshot()))))
    run_on(cut, 25, 47)
    cut.append(counting_chunk(5, 0, columns=LATENT))
    if restart:
        cut.close()
        cut = open_shard(tmp_path / "cut", **options)
    cut.rollback(snapshot)
    assert cut.row_counters().inserted == 125
    run_on(cut, 25, 60)
    a, b = (shard.sample(SampleRequest(200, (9,))) for shard in (whole, cut))
    np.testing.assert_array_equal(a.row_ids, b.row_ids)
    for name in LATENT:
        np.testing.assert_array_equal(a.columns[name], b.columns[name])


def test_new_windows_that_were_not_served_before_a_snapshot_are_served_after_it(tmp_path):
    sampling = SamplingSpec(batch_size=4, length=5, cross_episodes=True, online=True)
    shard = open_shard(tmp_path, sampling=sampling)
    for seq in range(8):
        shard.append(counting_chunk(0, seq))
    assert shard.sample(SampleRequest(3, (0,))).row_ids[:, 0].tolist() == [0, 5, 10]
    snapshot = shard.snapshot()
    shard.append(counting_chunk(0, 8))
    shard.sample(SampleRequest(5, (0,)))
    shard.rollback(snapshot)
    assert shard.sample(SampleRequest(4, (0,))).row_ids[:, 0].tolist() == [15, 20, 25, 30]
    shard.close()
    again = open_shard(tmp_path, sampling=sampling)
    again.append(counting_chunk(0, 8))
    assert again.sample(SampleRequest(1, (0,))).row_ids[0, 0] == 40


def test_a_snapshot_keeps_what_it_needs_and_an_old_one_is_refused(tmp_path):
    shard = open_shard(tmp_path, capacity=20, segment_bytes=400)
    run_on(shard, 0, 10)
    old = shard.snapshot()
    run_on(shard, 10, 100)
    shard.rollback(old)
    assert shard.row_counters() == dataclasses.replace(
        shard.row_counters(), inserted=50, stored=20, evicted=30
    )
    for stop in (40, 70, 100):
        run_on(shard, stop - 30, stop)
        shard.snapshot()
    with pytest.raises(CheckpointError, match="newest snapshots"):
        shard.rollback(old)


def test_a_snapshot_made_while_others_insert_is_still_one_cut(tmp_path):
    shard = open_shard(tmp_path, capacity=20, columns=LATENT, segment_bytes=600)
    snapshots = []

    def write():
        seq = 0
        while seq < 150 or len(snapshots) < 3:
            shard.append(counting_chunk(0, seq, columns=LATENT))
            seq += 1

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        snapshots.append(shard.snapshot())
    writer.join()
    shard.rollback(snapshots[-2])
    assert shard.row_counters().inserted == snapshots[-2].next_row
    assert numbers_of(shard, windows=100) <= {
        (0, n) for n in expected_starts(snapshots[-1].next_row // 5 + 1)
    }


def test_without_a_journal_nothing_is_written_and_nothing_rolls_back(tmp_path):
    shard = open_shard(tmp_path / "none", durability="none")
    shard.append(counting_chunk(0, 0))
    snapshot = shard.snapshot()
    shard.rollback(snapshot)
    shard.append(counting_chunk(0, 1))
    with pytest.raises(CheckpointError, match="durability none"):
        shard.rollback(snapshot)
    assert not (tmp_path / "none").exists()


def test_a_directory_is_held_by_one_shard_at_a_time(tmp_path):
    shard = open_shard(tmp_path)
    with pytest.raises(StateError, match="another process"):
        open_shard(tmp_path)
    shard.close()
    open_shard(tmp_path).close()


def test_a_directory_of_other_rows_is_refused_with_the_difference(tmp_path):
    open_shard(tmp_path).close()
    with pytest.raises(CheckpointError, match="columns"):
        open_shard(tmp_path, columns=LATENT)
    open_shard(tmp_path).close()


def test_a_chunk_that_contradicts_itself_is_refused_and_changes_nothing(tmp_path):
    shard = open_shard(tmp_path)
    chunk = counting_chunk(0, 0)
    for wrong in (
        dataclasses.replace(chunk, num_rows=4),
        dataclasses.replace(chunk, num_agent_steps=5),
    ):
        with pytest.raises(ShapeMismatchError, match="agent steps of chunk"):
            shard.append(wrong)
    with pytest.raises(CheckpointError, match="checksum"):
        shard.append(dataclasses.replace(chunk, payload=chunk.payload[:-1]))
    assert shard.row_counters() == RowCounters()
    assert shard.append(chunk)


def test_concurrent_writers_and_readers_lose_and_double_nothing(tmp_path):
    shard = open_shard(tmp_path, capacity=300, durability="fsync", segment_bytes=20_000)
    shard.append(counting_chunk(9, 0))
    failures = []

    def write(slot):
        for seq in range(25):
            shard.append(counting_chunk(slot, seq))
            shard.append(counting_chunk(slot, seq))

    def read(seed):
        for n in range(30):
            try:
                numbers_of(shard, windows=16, seed=seed * 1000 + n)
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(slot,)) for slot in range(4)]
    threads += [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    counters = shard.row_counters()
    assert (counters.inserted, counters.duplicate, counters.stored) == (505, 500, 300)
    assert counters.is_balanced


def test_a_request_without_a_share_takes_it_from_no_other():
    shard = open_shard(
        None, durability="none", make_selector=lambda size: FilesApart(size, Uniform(size))
    )
    loaded = counting_chunk(0, 0, size=60)
    shard.append(dataclasses.replace(loaded, stream=StreamId(3, -9, 0), num_agent_steps=0))
    for seq in range(10):
        shard.append(counting_chunk(7, seq))
    assert all(count > 0 for count in shard.window_counts())
    requests = [SampleRequest(40, (1,), 40), SampleRequest(40, (2,)), SampleRequest(40, (3,), 0)]
    slots = shard.draw(requests).decode().columns["obs"][:, 0, 0].reshape(3, 40)
    assert (slots[0] == 0).all()
    assert set(slots[1]) == {0, 7}
    assert (slots[2] == 7).all()
