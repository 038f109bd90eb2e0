"""Names of streams: what the journals know of them, and two lives of an env under one name."""

import dataclasses
import logging

import pytest

from tests.worldloom_dist.replay.test_shard import COLUMNS, EPISODE, counting_chunk, open_shard
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import NO_POLICY, PolicyVersion, StreamId
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import FIRST_GATEWAY_SLOT, SESSION_BITS
from worldloom_dist.replay.identity import known_incarnations
from worldloom_dist.replay.shard_rows import ShardRows
from worldloom_dist.replay.verify_shard import verify_shard
from worldloom_dist.run.folder import RunFolder


def life(incarnation, seq, *, slot=0, version=NO_POLICY, value=0.0, ends=False, begins=None):
    """A chunk of five rows, whose rewards say which life it is of."""
    rows = {name: spec.zeros(5) for name, spec in COLUMNS.items()}
    rows["is_first"][0] = seq == 0 if begins is None else begins
    rows["truncated"][-1] = ends
    rows["reward"][:] = value
    return make_chunk(StreamId(slot, incarnation, 0), seq, version, rows)


def test_the_journals_know_the_newest_incarnations_also_of_rows_that_were_evicted(tmp_path):
    assert known_incarnations(tmp_path).worker == -1
    shard = open_shard(tmp_path / "shard-0", capacity=30, segment_bytes=600)
    shard.append(life(3_000_007, 0, version=PolicyVersion(4, 10)))
    gateway = 2_000_001 << SESSION_BITS
    shard.append(life(gateway + 5, 0, slot=FIRST_GATEWAY_SLOT))
    shard.append(dataclasses.replace(life(-(2**56), 0), num_agent_steps=0))
    for seq in range(40):
        shard.append(life(1_000_000, seq, slot=1, version=PolicyVersion(2, seq)))
    assert not any(b"3000007" in path.read_bytes()[:16] for path in tmp_path.rglob("*.wal"))
    shard.close()
    known = known_incarnations(tmp_path)
    assert (known.worker, known.gateway, known.learner) == (3_000_007, 2_000_001, 2)


def test_the_head_of_the_newest_segment_may_be_damaged(tmp_path):
    shard = open_shard(tmp_path / "shard-0", segment_bytes=600)
    shard.append(life(5, 0))
    for seq in range(20):
        shard.append(life(1, seq, slot=1))
    shard.close()
    newest = max((tmp_path / "shard-0").glob("*.wal"))
    data = bytearray(newest.read_bytes())
    data[20] ^= 1
    newest.write_bytes(data)
    assert known_incarnations(tmp_path).worker == 5


@pytest.mark.parametrize("file", [None, {}, {"driver": 1, "learner": 1}])
def test_incarnations_go_on_above_what_the_rows_say_when_their_file_is_lost_or_old(
    tmp_path, caplog, file
):
    folder = RunFolder(tmp_path)
    for _ in range(7):
        folder.next_incarnation("driver")
    (tmp_path / "incarnations.json").unlink()
    if file is not None:
        folder.write_incarnations(file)
    with caplog.at_level(logging.WARNING):
        folder.count_on_from({"driver": 4, "learner": 9})
    assert "was lost or is an old copy" in caplog.text
    assert "counting on from there" in caplog.text
    assert folder.next_incarnation("driver") == 5
    assert folder.next_incarnation("learner") == 10
    caplog.clear()
    folder.count_on_from({"driver": 4, "learner": 9})
    assert not caplog.text
    assert folder.next_incarnation("driver") == 6


def test_incarnations_are_on_the_disk_before_they_are_used(tmp_path, monkeypatch):
    from worldloom.core import files

    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    RunFolder(tmp_path).next_incarnation("driver")
    assert [path.name for path in synced] == ["incarnations.json", tmp_path.name]


@pytest.mark.parametrize("count", ["three", None, -1, 2**70, 1.5, True])
def test_a_count_that_is_none_is_refused_and_not_to_be_deleted(tmp_path, count):
    folder = RunFolder(tmp_path)
    folder.write_incarnations({"driver": count})
    with pytest.raises(ConfigurationError, match=r"incarnations.json .* restore it") as caught:
        folder.check_readable()
    assert "delete" not in str(caught.value)


def test_verify_finds_chunks_of_a_second_life_that_were_taken_for_those_of_the_first(tmp_path):
    shard = open_shard(tmp_path / "shard-0")
    for seq in range(4):
        assert shard.append(life(1, seq, value=1.0))
    assert not shard.append(life(1, 3, value=1.0)), "one that came again"
    assert verify_shard(tmp_path / "shard-0").problems == []
    for seq in range(6):
        assert shard.append(life(1, seq, value=2.0)) == (seq >= 4)
    shard.close()
    found = verify_shard(tmp_path / "shard-0")
    assert found.duplicate == 25
    assert len(found.problems) == 4
    assert "chunk 0.1.0/0 came again with other rows: two lives" in found.problems[0]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"version": PolicyVersion(3, 9)}, {"version": PolicyVersion(1, 20)}, "version 1.20"),
        ({"ends": True}, {"begins": False}, "goes on in an episode"),
        ({"ends": True}, {"begins": True}, ""),
        ({"version": PolicyVersion(1, 9)}, {"version": PolicyVersion(2, 3)}, ""),
        ({}, {"begins": True}, ""),
    ],
)
def test_verify_finds_the_seam_in_journals_of_earlier_versions_too(tmp_path, first, second, words):
    shard = open_shard(tmp_path / "shard-0")
    shard.append(life(1, 0, **first))
    shard.append(life(1, 1, **second))
    shard.close()
    problems = verify_shard(tmp_path / "shard-0").problems
    assert len(problems) == bool(words)
    assert all(words in problem and "two lives" in problem for problem in problems)


def test_verify_finds_two_episodes_of_a_client_that_stand_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardRows, "check_episode", lambda *_: None)  # as earlier versions
    shard = open_shard(tmp_path / "shard-0")
    slot = FIRST_GATEWAY_SLOT
    shard.append(life(1, 0, slot=slot, version=PolicyVersion(1, 9), ends=True))
    shard.append(life(1, 1, slot=slot, version=PolicyVersion(1, 8)))
    shard.close()
    (problem,) = verify_shard(tmp_path / "shard-0").problems
    assert "chunk 1000000.1.0/1 goes on in an episode" in problem
    assert "two episodes of a client" in problem


def test_a_late_chunk_is_no_seam(tmp_path):
    shard = open_shard(tmp_path / "shard-0")
    assert EPISODE == 7
    for seq in (0, 2, 1, 3):
        shard.append(counting_chunk(0, seq))
    shard.close()
    assert verify_shard(tmp_path / "shard-0").problems == []
