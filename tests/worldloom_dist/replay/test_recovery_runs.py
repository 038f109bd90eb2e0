"""Chunks that are recovered many at a time leave what they leave one by one, whatever a journal
holds.
"""

import dataclasses
import shutil
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worldloom_dist.replay.test_hostile_journals import frames, write
from tests.worldloom_dist.replay.test_shard_damage import damage, segments
from worldloom.core.exceptions import BufferError, CheckpointError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data import chunk_runs
from worldloom.data.codec import make_chunk
from worldloom.data.selectors import Prioritised, Uniform
from worldloom_dist.ports import (
    CHUNK_SOURCES,
    FIRST_GATEWAY_SLOT,
    FIRST_STEP,
    EpisodeOverError,
    SampleRequest,
)
from worldloom_dist.replay import recovery
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.replay.shard_rows import ShardRows

COLUMNS = EnvSpec(
    name="counting",
    obs={"obs": ArraySpec((2,), "int64"), "large": ArraySpec((70,))},
    action={"action": ArraySpec((1,))},
).columns() | {"latent": ArraySpec((2,), "uint16")}
CLIENT = FIRST_GATEWAY_SLOT
SLOTS = (0, 1, 2, CLIENT)
ONE_BY_ONE = 10**9
PLAIN = {
    "length": 3,
    "online": False,
    "crosses": False,
    "stride": 1,
    "capacity": 50,
    "capacity_bytes": None,
    "segment_bytes": 1 << 20,
    "prioritised": False,
}


def chunk(rng, stream, seq, size, *, resets=()):
    rows = {name: spec.zeros(size) for name, spec in COLUMNS.items()}
    rows["obs"] = rng.integers(0, 1000, (size, 2))
    rows["obs/large"] = rng.random((size, 70), dtype=np.float32)
    rows["reward"] = rng.random(size, dtype=np.float32)
    rows["is_first"] = rng.random(size) < 0.15
    rows["terminated"] = rng.random(size) < 0.1
    notes = {FIRST_STEP: 100 * seq, CHUNK_SOURCES: [2] * size} if stream.slot == CLIENT else None
    made = make_chunk(stream, seq, PolicyVersion(0, seq), rows, resets, notes)
    return dataclasses.replace(made, num_agent_steps=0) if stream.is_imported else made


def open_shard(directory, options):
    sampling = SamplingSpec(
        batch_size=4,
        length=options["length"],
        online=options["online"],
        cross_episodes=options["crosses"],
        stride=min(options["stride"], options["length"]),
    )
    return ReplayShard(
        3,
        COLUMNS,
        sampling,
        capacity_rows=options["capacity"],
        capacity_bytes=options["capacity_bytes"],
        directory=directory,
        segment_bytes=options["segment_bytes"],
        make_selector=Prioritised if options["prioritised"] else Uniform,
    )


def state_of(shard):
    """Every row, and what is known of all."""
    rows = shard.rows
    buffer = rows.buffer
    ids, _ = buffer.export_mutable()
    stored = buffer.windows_at(ids, 1).decode()
    return {
        "head": rows.head(),
        "counters": rows.row_counters(),
        "segments": rows.segment_rows,
        "steps": list(rows.next_steps.items()),
        "columns": {name: column.tobytes() for name, column in stored.columns.items()},
        "notes": (stored.versions.tolist(), stored.inserted_s.tolist()),
        "ids": ids.tolist(),
        "windows": (buffer.num_windows, [part.tobytes() for part in buffer.export_weights()]),
        "queue": (buffer.online_queued, buffer.online_served),
        "place": shard.journal.position,
    }


def draws_of(shard):
    """Windows: of the online queue those that no one has seen, and enough of all others."""
    try:
        drawn = shard.sample(SampleRequest(200, (1, 2)))
    except BufferError:
        return None
    return [drawn.row_ids.tolist(), drawn.inserted_s.tolist(), drawn.versions.tolist()] + [
        drawn.columns[name].tobytes() for name in sorted(drawn.columns)
    ]


def stored(shard, one):
    """Whether it is new; of a client, perhaps why it is refused."""
    try:
        return shard.append(one)
    except EpisodeOverError as error:
        return str(error)


def looked_at(directory, options, snapshot, more):
    """What a shard is after a restart, after more chunks, and after a rollback."""
    try:
        shard = open_shard(directory, options)
    except CheckpointError as error:
        return str(error).replace(str(directory), "")
    found = [(shard.recovered.chunks, shard.recovered.text.partition(" after ")[0])]
    found += [state_of(shard), draws_of(shard)]
    with mock.patch("worldloom_dist.replay.shard.time.time", return_value=7.0):
        for one in more:
            found += [stored(shard, one), state_of(shard)]
    found.append(draws_of(shard))
    try:
        if snapshot is not None:
            shard.rollback(snapshot)
            found += [state_of(shard), draws_of(shard)]
    except CheckpointError as error:
        found.append(str(error).replace(str(directory), ""))
    shard.close()
    return found


def compare(directory, folder, options, snapshot=None, more=()):
    """Open two copies, one by one and at once."""
    found = []
    for shortest in (1, ONE_BY_ONE):
        copy = shutil.copytree(directory, folder / str(shortest))
        with mock.patch.object(recovery, "SHORTEST_RUN", shortest):
            found.append(looked_at(copy, options, snapshot, more))
    assert found[0] == found[1]


OPTIONS = st.fixed_dictionaries(
    {
        "length": st.sampled_from([1, 3, 9]),
        "online": st.booleans(),
        "crosses": st.booleans(),
        "stride": st.sampled_from([1, 3]),
        "capacity": st.sampled_from([20, 50, 5000]),
        "capacity_bytes": st.sampled_from([None, None, 9000]),
        "segment_bytes": st.sampled_from([3000, 20_000, 1 << 20]),
        "prioritised": st.booleans(),
    }
)


def ops_of(sizes):
    return st.lists(
        st.tuples(
            st.integers(0, len(SLOTS) - 1),
            st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, -1, -2]),  # how far seq is from the next one
            st.sampled_from(sizes),
            st.sampled_from([(), (), (), (), (0,)]),
        ),
        min_size=1,
        max_size=50,
    )


OPS = st.one_of(ops_of([5]), ops_of([5, 5, 5, 1, 2, 11]))
FUZZ = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def fill(directory, options, ops):
    """A journal; returns a snapshot taken on the way, and chunks that may come later."""
    rng = np.random.default_rng(0)
    shard = open_shard(directory, options)
    snapshot = None
    for number, (slot, jump, size, resets) in enumerate(ops):
        stream = StreamId(SLOTS[slot], -1 if slot == 2 else 0, 0)
        seq = max(0, shard.next_seq(stream) + jump)
        stored(shard, chunk(rng, stream, seq, size, resets=resets))
        if number == len(ops) // 2:
            draws_of(shard)
        if number == len(ops) * 3 // 4:
            snapshot = shard.snapshot()
    positions = {stream: shard.next_seq(stream) for stream in shard.rows.buffer.streams()}
    shard.close()
    streams = [*positions, StreamId(9, 0, 0)]
    more = [
        chunk(rng, stream, max(0, positions.get(stream, 0) + jump), 5)
        for stream in streams
        for jump in (0, -1, 1)
    ]
    return snapshot, more


@given(options=OPTIONS, ops=OPS)
@settings(max_examples=60, **FUZZ)
def test_runs_leave_what_their_chunks_leave_one_by_one(tmp_path_factory, options, ops):
    folder = tmp_path_factory.mktemp("shard")
    snapshot, more = fill(folder / "real", options, ops)
    compare(folder / "real", folder, options, snapshot, more)


@given(
    options=OPTIONS,
    ops=OPS,
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    kind=st.sampled_from(["flip", "cut", "delete"]),
)
@settings(max_examples=60, **FUZZ)
def test_a_damaged_journal_leaves_the_same_at_once_and_one_by_one(
    tmp_path_factory, options, ops, place, flip, kind
):
    folder = tmp_path_factory.mktemp("shard")
    snapshot, more = fill(folder / "real", options, ops)
    files = segments(folder / "real")
    damage(files, int(place * sum(file.stat().st_size for file in files)), flip, kind)
    compare(folder / "real", folder, options, snapshot, more)


@given(
    ops=OPS,
    record=st.integers(0, 100),
    at=st.floats(0, 1, exclude_max=True),
    to=st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]),
    mends=st.booleans(),
)
@settings(max_examples=60, **FUZZ)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_records_that_no_shard_writes_are_taken_or_refused_alike(
    tmp_path_factory, ops, record, at, to, mends
):
    options = PLAIN | {"online": True}
    folder = tmp_path_factory.mktemp("shard")
    fill(folder / "real", options, ops)
    (path,) = segments(folder / "real")
    records = frames(path)
    number = 1 + record % (len(records) - 1)
    kind, data = records[number]
    changed = bytearray(data)
    # most of it in what a chunk says of itself, and in the header of its payload
    changed[int(at * min(len(data), 600))] = to
    if mends and len(changed) > 100:
        changed[92:96] = chunk_runs.zlib.crc32(bytes(changed[96:])).to_bytes(4, "little")
    records[number] = (kind, bytes(changed))
    write(path, records)
    compare(folder / "real", folder, options)


def test_nearly_all_chunks_of_vectors_are_taken_at_once(tmp_path, monkeypatch):
    taken = []
    real = ShardRows.store_run
    monkeypatch.setattr(
        ShardRows, "store_run", lambda rows, run: taken.append(len(run)) or real(rows, run)
    )
    options = PLAIN | {"capacity": 5000, "segment_bytes": 60_000}
    rng = np.random.default_rng(1)
    fill(tmp_path / "real", options, [(int(n), 0, 5, ()) for n in rng.integers(0, 3, 300)])
    count = len(segments(tmp_path / "real"))
    assert count > 3
    open_shard(tmp_path / "real", options).close()
    assert sum(taken) == 300, "all but heads"
    assert len(taken) == count


def test_a_run_is_never_longer_than_the_buffer_or_the_limit(tmp_path, monkeypatch):
    runs = []
    real = ShardRows.store_run
    monkeypatch.setattr(
        ShardRows, "store_run", lambda rows, run: runs.append(run.rows) or real(rows, run)
    )
    options = PLAIN
    fill(tmp_path / "real", options, [(0, 0, 5, ())] * 100)
    open_shard(tmp_path / "real", options).close()
    assert max(runs) == 50
    monkeypatch.setattr(recovery, "RUN_ROWS", 46)
    runs.clear()
    open_shard(tmp_path / "real", options).close()
    assert max(runs) == 45


def test_a_buffer_that_keeps_pictures_encoded_takes_no_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardRows, "store_run", lambda rows, run: pytest.fail("a run"))
    columns = COLUMNS | {"obs/image": ArraySpec((2, 2, 3), "uint8")}
    shards = []
    for _ in range(2):
        shard = ReplayShard(
            0,
            columns,
            SamplingSpec(batch_size=4, length=3),
            capacity_rows=200,
            directory=tmp_path / "real",
        )
        for seq in range(20 if not shards else 0):
            rows = {name: spec.zeros(5) for name, spec in columns.items()}
            rows["obs/image"] += np.uint8(seq)
            shard.append(make_chunk(StreamId(0, 0, 0), seq, PolicyVersion(0, 0), rows))
        shards.append(draws_of(shard))
        shard.close()
    assert shards[0] == shards[1]
