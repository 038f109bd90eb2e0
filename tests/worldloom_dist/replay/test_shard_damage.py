"""What a shard says of rows that its disk lost or altered: only right windows, and counters that
count every loss once.
"""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worldloom_dist.replay.test_shard import (
    COLUMNS,
    LATENT,
    counting_chunk,
    expected_starts,
    numbers_of,
    open_shard,
)
from worldloom.core.exceptions import CheckpointError
from worldloom_dist.ports import RowCounters, SampleRequest
from worldloom_dist.replay.journal import FRAME, JournalDamage, read_journal, segment_path
from worldloom_dist.replay.verify_shard import verify_shard

ROW_BYTES = sum(spec.nbytes for spec in COLUMNS.values())
SMALL = {"capacity": 30, "segment_bytes": 300}


def filled(directory, chunks=12, **options):
    """A shard with this many chunks of 5 rows, each of which came twice."""
    shard = open_shard(directory, **options)
    for seq in range(chunks):
        assert shard.append(counting_chunk(0, seq))
        assert not shard.append(counting_chunk(0, seq))
    return shard


def segments(directory):
    return sorted(directory.glob("segment-*.wal"))


@given(
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=2),
    flip=st.integers(1, 255),
    kind=st.sampled_from(["flip", "cut", "delete"]),
    capacity=st.sampled_from([30, 1000]),
    segment_bytes=st.sampled_from([300, 1500, 1 << 20]),
)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_journal_damaged_anywhere_gives_only_right_windows_and_honest_books(
    tmp_path_factory, places, flip, kind, capacity, segment_bytes
):
    directory = tmp_path_factory.mktemp("shard")
    options = {"capacity": capacity, "segment_bytes": segment_bytes}
    shard = filled(directory, **options)
    acknowledged = shard.row_counters()
    shard.close()
    for place in places:
        files = segments(directory)
        damage(files, int(place * sum(f.stat().st_size for f in files)), flip, kind)
    again = open_shard(directory, **options)
    again.mark_lost(acknowledged)
    counters = again.row_counters()
    assert counters.is_balanced
    assert min(counters.stored, counters.evicted, counters.lost_acked) >= 0
    assert (counters.inserted, counters.agent_steps) == (60, acknowledged.agent_steps)
    if capacity == 1000:
        assert counters.lost_acked == 60 - counters.stored
        assert counters.lost_acked <= 5 * len(places) or kind != "flip"
    assert counters.duplicate <= acknowledged.duplicate
    # heads are a small part of the bytes, and one is left
    if kind == "flip" and segment_bytes > 300:
        assert counters.duplicate >= acknowledged.duplicate - 5 * len(places)
    if again.live_windows():
        assert numbers_of(again, windows=60) <= {(0, n) for n in expected_starts(12)}
    for seq in range(2):
        again.append(counting_chunk(1, seq))
    counters = again.row_counters()
    again.close()
    assert open_shard(directory, **options).row_counters() == counters


def damage(files, offset, flip, kind):
    for file in files:
        size = file.stat().st_size
        if offset < size:
            if kind == "delete":
                file.unlink()
                return
            data = bytearray(file.read_bytes())
            data[offset] ^= flip
            file.write_bytes(data if kind == "flip" else data[:offset])
            return
        offset -= size


def test_a_shard_whose_disk_is_gone_comes_back_empty_and_says_how_much_is_lost(tmp_path):
    shard = open_shard(tmp_path / "old", capacity=50)
    for seq in range(30):
        shard.append(counting_chunk(0, seq))
    known = shard.row_counters()
    fresh = open_shard(tmp_path / "new", capacity=50)
    assert fresh.mark_lost(known) == 50
    assert fresh.mark_lost(known) == 0
    assert fresh.append(counting_chunk(0, 30))
    counters = fresh.row_counters()
    assert (counters.inserted, counters.stored, counters.evicted, counters.lost_acked) == (
        155,
        5,
        100,
        50,
    )
    assert counters.agent_steps == known.agent_steps + counting_chunk(0, 30).num_agent_steps
    fresh.close()
    assert not verify_shard(tmp_path / "new").problems
    assert open_shard(tmp_path / "new", capacity=50).row_counters() == counters


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"capacity_bytes": 40 * ROW_BYTES}, {"capacity_bytes": 40 * ROW_BYTES}),
        ({"capacity": 20}, {"capacity": 1000}),
    ],
    ids=["bounded in bytes", "resumed with more room"],
)
def test_rows_that_a_smaller_capacity_had_evicted_are_not_taken_from_those_that_are_lost(
    tmp_path, first, later
):
    shard = open_shard(tmp_path, segment_bytes=1500, **first)
    for seq in range(2):
        shard.append(counting_chunk(0, seq, size=30 if "capacity_bytes" in first else 15))
    for slot in range(1, 4):
        shard.append(counting_chunk(slot, 0))
    acknowledged = shard.row_counters()
    shard.close()
    cut_last_record(tmp_path)
    again = open_shard(tmp_path, segment_bytes=1500, **later)
    found = again.row_counters()
    assert found.evicted < acknowledged.evicted, "segments give back what was evicted"
    assert again.mark_lost(acknowledged) == 5
    counters = again.row_counters()
    assert counters.is_balanced
    assert (counters.inserted, counters.lost_acked) == (acknowledged.inserted, 5)
    again.close()
    assert not verify_shard(tmp_path).problems
    assert open_shard(tmp_path, segment_bytes=1500, **later).row_counters() == counters


def test_a_loss_that_was_known_and_is_forgotten_with_the_end_of_the_journal_counts_once(tmp_path):
    shard = filled(tmp_path)
    shard.mark_lost(RowCounters(inserted=70))
    acknowledged = shard.row_counters()
    shard.close()
    cut_last_record(tmp_path)
    again = open_shard(tmp_path)
    assert again.row_counters().inserted == 60
    again.mark_lost(acknowledged)
    assert again.row_counters() == acknowledged


def cut_last_record(directory):
    """As a power loss does."""
    *_, last = read_journal(directory, JournalDamage())
    os.truncate(segment_path(directory, last.segment), last.offset - FRAME.size)


def test_a_segment_that_is_missing_counts_as_lost_and_not_as_evicted(tmp_path):
    shard = filled(tmp_path, segment_bytes=600)
    before = shard.row_counters()
    shard.close()
    segments(tmp_path)[0].unlink()
    [problem] = verify_shard(tmp_path).problems
    assert problem.endswith("are missing: the segments that held them are gone")
    again = open_shard(tmp_path, segment_bytes=600)
    counters = again.row_counters()
    assert (counters.inserted, counters.evicted, counters.duplicate) == (
        before.inserted,
        0,
        before.duplicate,
    )
    assert 0 < counters.lost_acked == before.stored - counters.stored
    assert again.mark_lost(before) == 0
    again.close()
    found = verify_shard(tmp_path)
    assert (found.problems, found.lost) == ([], counters.lost_acked), (
        "what is written down as lost is no problem any more"
    )
    assert open_shard(tmp_path, segment_bytes=600).row_counters() == counters, "it is counted once"


def test_segments_that_were_deleted_with_their_rows_are_no_loss_also_after_a_rollback(tmp_path):
    shard = filled(tmp_path, **SMALL)
    snapshot = shard.snapshot()
    assert segments(tmp_path)[0].name != "segment-00000000.wal"
    at_snapshot = shard.row_counters()
    for seq in range(12, 30):
        shard.append(counting_chunk(0, seq))
    shard.close()
    again = open_shard(tmp_path, **SMALL)
    assert again.row_counters().lost_acked == 0
    again.rollback(snapshot)
    again.close()
    restarted = open_shard(tmp_path, **SMALL)
    assert restarted.row_counters() == at_snapshot


def test_a_damaged_head_of_the_oldest_segment_costs_neither_books_nor_the_table_of_seen_chunks(
    tmp_path,
):
    shard = filled(tmp_path, **SMALL)
    shard.mark_lost(RowCounters(inserted=75, evicted=30))
    for seq in range(15, 18):
        shard.append(counting_chunk(0, seq))
    before = shard.row_counters()
    assert before.lost_acked > 0
    shard.close()
    damage(segments(tmp_path), 20, 1, "flip")
    again = open_shard(tmp_path, **SMALL)
    assert again.row_counters() == before
    assert not again.append(counting_chunk(0, 0)), "a chunk from before the damaged head is known"
    assert again.append(counting_chunk(0, 13)), "one that never came is not"


@pytest.mark.parametrize("name", ["marks.json", "shard.json"])
@pytest.mark.parametrize("content", ["", "{", "[{}]", "7"])
def test_a_damaged_file_beside_the_journal_is_named(tmp_path, name, content):
    shard = filled(tmp_path)
    shard.snapshot()
    shard.close()
    intact = (tmp_path / name).read_text()
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        open_shard(tmp_path)
    (tmp_path / name).write_text(intact)
    assert open_shard(tmp_path).row_counters() == shard.row_counters(), (
        "a shard that does not open lets go of its folder"
    )


def test_refreshed_extras_that_are_damaged_begin_as_they_were_stored(tmp_path, caplog):
    shard = open_shard(tmp_path, columns=LATENT)
    for seq in range(4):
        shard.append(counting_chunk(0, seq, columns=LATENT))
    drawn = shard.sample(SampleRequest(3, (0,)))
    shard.write_back(drawn.row_ids, {"latent": drawn.columns["latent"] + 7})
    shard.snapshot()
    shard.close()
    intact = open_shard(tmp_path, columns=LATENT)
    assert intact.sample(SampleRequest(50, (1,))).columns["latent"].max() == 7
    intact.close()
    [file] = tmp_path.glob("mutable-*.rows")
    file.write_bytes(file.read_bytes()[:-5])
    again = open_shard(tmp_path, columns=LATENT)
    assert "extras are as they were stored" in caplog.text
    assert file.name in caplog.text
    assert not again.sample(SampleRequest(50, (1,))).columns["latent"].any()
    snapshot = json.loads((tmp_path / "marks.json").read_text())[-1]
    assert snapshot["mutable_file"] == file.name
