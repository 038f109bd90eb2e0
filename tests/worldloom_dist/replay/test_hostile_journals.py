"""Journals whose checksums are right and whose records are not, records that stand twice, and
segments made to take long: one documented error, honest counters, and no more time than their size
asks for.
"""

import contextlib
import json
import shutil
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worldloom.training.test_hostile_checkpoints import MUTATION, mutated
from tests.worldloom_dist.replay.test_shard import LATENT, counting_chunk, open_shard
from worldloom.core.exceptions import CheckpointError
from worldloom_dist.replay import journal as journal_module
from worldloom_dist.replay.journal import FRAME, JournalDamage, _frame, read_journal
from worldloom_dist.replay.verify_shard import verify_shard

OPTIONS = {"capacity": 100, "segment_bytes": 3000, "columns": LATENT}
FUZZ = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good") / "shard-3"
    shard = open_shard(directory, **OPTIONS)
    for seq in (*range(12), 14, 12, 13, *range(15, 30)):
        for slot in (0, 1):
            shard.append(counting_chunk(slot, seq, columns=LATENT))
        shard.append(counting_chunk(0, seq, columns=LATENT))
    shard.snapshot()
    shard.close()
    return directory


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "shard-3", dirs_exist_ok=True)


def segments(directory):
    return sorted(directory.glob("segment-*.wal"))


def frames(path):
    """Kind and payload of every record of a segment."""
    data = path.read_bytes()
    found = []
    offset = 0
    while offset < len(data):
        _, kind, size, _ = FRAME.unpack_from(data, offset)
        offset += FRAME.size
        found.append((kind, data[offset : offset + size]))
        offset += size
    return found


def write(path, records):
    path.write_bytes(b"".join(b"".join(_frame(kind, [data])) for kind, data in records))


def look(directory):
    """Open it and verify it; what is opened has counters that add up."""
    with contextlib.suppress(CheckpointError):
        shard = open_shard(directory, **OPTIONS)
        assert shard.row_counters().is_balanced
        shard.close()
    return verify_shard(directory).problems


VALUES = [-1, 2**61, 2**63, 1e308, None, "x", [], [[1]], {}, [[0, 1, 0, 2**60, 0]], True, 10**30]


@given(
    segment=st.integers(0, 20),
    record=st.integers(0, 50),
    kind=st.sampled_from([None, None, None, 0, 1, 2, 3, 4, 5, 2**32 - 1]),
    mutation=MUTATION,
    field=st.one_of(st.none(), st.tuples(st.integers(0, 8), st.sampled_from(VALUES))),
)
@settings(max_examples=200, **FUZZ)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_records_that_no_shard_writes_raise_only_the_documented_error(
    good, tmp_path, segment, record, kind, mutation, field
):
    directory = tmp_path / "shard-3"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(good, directory)
    path = segments(directory)[segment % len(segments(directory))]
    records = frames(path)
    number = 0 if field is not None else record % len(records)
    before, data = records[number]
    if field is not None:
        head = json.loads(data)
        head[list(head)[field[0] % len(head)]] = field[1]
        data = json.dumps(head).encode()
    else:
        data = mutated(data, mutation)
    records[number] = (before if kind is None else kind, data)
    write(path, records)
    look(directory)


@given(name=st.sampled_from(["shard.json", "marks.json", "fences.json"]), mutation=MUTATION)
@settings(max_examples=100, **FUZZ)
def test_small_files_that_were_changed_raise_only_the_documented_error(
    good, tmp_path, name, mutation
):
    directory = tmp_path / "shard-3"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(good, directory)
    (directory / "fences.json").write_text("[[1000000, 7]]")
    (directory / name).write_bytes(mutated((directory / name).read_bytes(), mutation))
    look(directory)


@pytest.mark.parametrize("name", ["shard.json", "marks.json", "fences.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[[1]]", '[{"segment": "x"}]', "3", "[3]"])
def test_small_files_of_other_content_are_refused(copy, name, text):
    (copy / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        open_shard(copy, **OPTIONS)


@pytest.mark.parametrize("where", ["adjacent", "later"])
def test_a_record_that_stands_twice_is_taken_once_and_found(copy, where, caplog):
    shard = open_shard(copy, **OPTIONS)
    expected = shard.row_counters()
    shard.close()
    assert look(copy) == []
    *_, before, last = segments(copy)
    records = frames(before)
    chunk = next(record for record in records if record[0] == 2)
    if where == "adjacent":
        records.insert(records.index(chunk), chunk)
        write(before, records)
    else:
        last.write_bytes(last.read_bytes() + b"".join(_frame(*_as_parts(chunk))))
    again = open_shard(copy, **OPTIONS)
    assert again.row_counters() == expected
    again.close()
    assert "1 chunks stand twice" in caplog.text
    assert any("twice" in problem for problem in verify_shard(copy).problems)


def _as_parts(record):
    kind, data = record
    return kind, [data]


def test_a_segment_of_frame_headers_is_given_up_in_time(tmp_path, monkeypatch):
    looked_at = []
    real = journal_module.zlib.crc32

    class Counting:
        @staticmethod
        def crc32(data, start=0):
            looked_at.append(len(data))
            return real(data, start)

    count = 4000
    header = struct.pack("<4sIII", b"WLJ1", 2, count * 16 - 200 * 16, 0)
    (tmp_path / "segment-00000000.wal").write_bytes(header * count)
    monkeypatch.setattr(journal_module, "zlib", Counting)
    damage = JournalDamage()
    assert list(read_journal(tmp_path, damage)) == []
    assert sum(looked_at) < 40 * 16 * count
    assert damage.corrupt_bytes == 16 * count
