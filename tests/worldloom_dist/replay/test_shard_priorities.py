"""Priorities outlive the process: exactly at a snapshot, and as they were last written after a
kill.
"""

import dataclasses
import json

import numpy as np
import pytest

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom.data.selector_spec import parse_selector
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.replay.snapshots import ShardSnapshot
from worldloom_dist.replay.verify_shard import verify_shard

COLUMNS = EnvSpec(
    name="counting", obs={"obs": ArraySpec((1,), "int64")}, action={"action": ArraySpec((1,))}
).columns()
MIXTURE = "0.5*prioritised:0.6+0.5*prioritised:1"


def open_shard(directory, selector="prioritised:0.6", capacity=60):
    return ReplayShard(
        0,
        COLUMNS,
        SamplingSpec(batch_size=8, length=3),
        capacity_rows=capacity,
        directory=directory,
        segment_bytes=1500,
        make_selector=parse_selector(selector).build,
    )


def add(shard, seq, rows=5):
    columns = {name: spec.zeros(rows) for name, spec in COLUMNS.items()}
    columns["is_first"][0] = True
    shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, columns))


def run_on(shard, start, stop):
    for seq in range(start, stop):
        add(shard, seq)
        windows = shard.sample(SampleRequest(8, (seq,)))
        shard.update_priorities(
            windows.row_ids[:, 0], np.random.default_rng(seq).uniform(0.1, 9.0, 8)
        )


def starts_of(shard, windows=400):
    return shard.sample(SampleRequest(windows, (9,))).row_ids[:, 0]


def focus_on(shard, start):
    shard.update_priorities(np.array([start]), np.array([1e9]))


@pytest.mark.parametrize("selector", ["prioritised:0.6", MIXTURE])
@pytest.mark.parametrize("restart", [False, True])
def test_a_rollback_restores_priorities_to_the_bit(tmp_path, restart, selector):
    whole, cut = (open_shard(tmp_path / name, selector) for name in ("whole", "cut"))
    run_on(whole, 0, 40)
    run_on(cut, 0, 18)
    snapshot = ShardSnapshot(**json.loads(json.dumps(dataclasses.asdict(cut.snapshot()))))
    run_on(cut, 18, 31)
    focus_on(cut, 31 * 5 - 5)
    cut.save_weights()
    if restart:
        cut.close()
        cut = open_shard(tmp_path / "cut", selector)
    cut.rollback(snapshot)
    assert [path.name for path in (tmp_path / "cut").glob("weights-*")] == [
        snapshot.weights_file
    ], "newer ones name other rows"
    run_on(cut, 18, 40)
    np.testing.assert_array_equal(starts_of(whole), starts_of(cut))
    assert not verify_shard(tmp_path / "cut").problems


def test_a_shard_that_was_killed_goes_on_with_the_priorities_it_wrote_last(tmp_path):
    shard = open_shard(tmp_path)
    for seq in range(6):
        add(shard, seq)
    focus_on(shard, 5)
    assert shard.save_weights()
    assert not shard.save_weights(), "nothing new"
    focus_on(shard, 10)  # is lost
    shard.close()
    again = open_shard(tmp_path)
    assert (starts_of(again) == 5).mean() > 0.95
    add(again, 6)
    assert set(starts_of(again).tolist()) >= {5, 30, 31, 32}, (
        "what came since counts as new: it gets the highest priority"
    )
    add(again, 7)
    for seq in range(8, 14):
        add(again, seq)
    assert starts_of(again).min() >= 10, "an evicted window takes its priority along"


def test_rows_behind_the_written_priorities_count_as_new(tmp_path):
    shard = open_shard(tmp_path)
    add(shard, 0)
    focus_on(shard, 0)
    shard.save_weights()
    add(shard, 1)
    shard.close()
    assert set(starts_of(open_shard(tmp_path)).tolist()) == {0, 5, 6, 7}


def test_a_restart_gets_the_priorities_of_a_snapshot_too_and_one_file_is_kept(tmp_path):
    shard = open_shard(tmp_path)
    run_on(shard, 0, 6)
    focus_on(shard, 5)
    for _ in range(5):
        shard.snapshot()
    assert len(list(tmp_path.glob("weights-*"))) == 2, "one for each snapshot that is kept"
    shard.close()
    assert (starts_of(open_shard(tmp_path)) == 5).mean() > 0.9


@pytest.mark.parametrize("what", ["selector", "damage"])
def test_priorities_that_do_not_fit_or_are_damaged_begin_anew_and_say_so(tmp_path, caplog, what):
    shard = open_shard(tmp_path)
    for seq in range(6):
        add(shard, seq)
    focus_on(shard, 5)
    shard.save_weights()
    shard.close()
    if what == "damage":
        (path,) = tmp_path.glob("weights-*")
        path.write_bytes(path.read_bytes()[:-3])
    again = open_shard(tmp_path, "prioritised:0.6" if what == "damage" else MIXTURE)
    assert "start over" in caplog.text
    assert (starts_of(again) == 5).mean() < 0.3


def test_other_selectors_write_nothing(tmp_path):
    shard = open_shard(tmp_path, "0.5*uniform+0.5*recency")
    run_on(shard, 0, 6)
    assert not shard.save_weights()
    assert shard.snapshot().weights_file == ""
    assert not list(tmp_path.glob("weights-*"))
