"""``verify`` finds every false number, and says nothing against a run that is whole, also while
someone writes to it.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom_dist.replay import verify_shard as module
from worldloom_dist.replay.__main__ import main
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.replay.verify_shard import verify_shard
from worldloom_dist.run.folder import RunFolder

ENV = EnvSpec(
    name="counting", obs={"obs": ArraySpec((2,), "int64")}, action={"action": ArraySpec((1,))}
)
SAMPLING = SamplingSpec(batch_size=4, length=3, cross_episodes=True)
ROWS = 6


@pytest.fixture
def copied(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "copy")
    return tmp_path / "copy"


def change_summary(folder, **changes):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for name, by in changes.items():
        part = summary["rows"] if name in summary["rows"] else summary
        part[name] += by
    path.write_text(json.dumps(summary))


def test_verify_finds_a_whole_run_whole_and_counts_its_rows(run_dir, capsys):
    assert main(["verify", str(run_dir)]) == 0
    text = capsys.readouterr().out
    found = json.loads(text[: text.rindex("}") + 1])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (
        sum(shard["inserted"] for shard in found["shards"].values()) == summary["rows"]["inserted"]
    )
    assert sum(shard["agent_steps"] for shard in found["shards"].values()) == summary["agent_steps"]
    assert found["checkpoints"] >= 1
    assert found["problems"] == []
    assert text.endswith("is whole\n")


def test_verify_misses_rows_that_the_run_knew_of_at_the_end_of_a_journal(copied):
    shard = copied / "replay" / "shard-0"
    held = verify_shard(shard).inserted
    run = RunFolder(copied)
    run.write_counters({"0": {"inserted": held}})
    assert not verify_run(copied).problems
    run.write_counters({"0": {"inserted": held + 1}})
    [problem] = verify_run(copied).problems
    assert f"ends at row {held}, and the run knew of {held + 1}" in problem


@pytest.mark.parametrize("is_cut", [True, False])
def test_verify_takes_only_a_record_that_is_cut_off_for_one_that_was_being_written(copied, is_cut):
    [*_, path] = sorted((copied / "replay" / "shard-0").glob("segment-*.wal"))
    shutil.rmtree(copied / "checkpoints")
    (path.parent / "marks.json").unlink()
    data = bytearray(path.read_bytes())
    if is_cut:
        del data[-3:]
    else:
        data[-3] ^= 255
    path.write_bytes(data)
    found = verify_shard(path.parent)
    assert bool(found.torn_bytes) is is_cut
    assert bool(found.problems) is not is_cut


@pytest.mark.parametrize(
    "name", ["replay/shard-0/fences.json", "replay/books.json", "incarnations.json"]
)
def test_verify_reads_the_small_files_that_a_run_needs_to_go_on(copied, name):
    (copied / name).write_text("[[1,")
    assert any(name in problem for problem in verify_run(copied).problems)


def test_verify_counts_the_rows_of_a_policy_that_had_lost_its_carry(tmp_path):
    rows = {name: spec.zeros(ROWS) for name, spec in ENV.columns().items()}
    shard = ReplayShard(
        0, ENV.columns(), SAMPLING, capacity_rows=100, directory=tmp_path / "shard-0"
    )
    for seq, marked in enumerate(([], [1], [0, 4])):
        shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, rows, marked))
    shard.close()
    found = verify_shard(tmp_path / "shard-0")
    assert (found.carry_resets, found.problems) == (3, [])


@pytest.mark.parametrize(
    "victim", ["segment-*.wal", "tensors.safetensors", "summary.json", "shard.json"]
)
def test_verify_finds_a_changed_byte_anywhere(run_dir, tmp_path, capsys, victim):
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    path = sorted(folder.rglob(victim))[0]
    data = bytearray(path.read_bytes())
    if victim == "summary.json":
        data = data.replace(b'"inserted": ', b'"inserted": 1')
    else:
        data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert main(["verify", str(folder)]) == 1
    assert str(path.parent) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lost_acked": 9, "stored": -9}, "says lost_acked 9, and the journals say 0"),
        ({"evicted": 9, "stored": -9}, "says stored"),
        ({"duplicate": 77}, "says duplicate 77, and the journals say 0"),
        ({"inserted": -9, "stored": -9}, "says inserted"),
        ({"agent_steps": 1, "env_steps": 1}, "says agent_steps"),
        ({"env_steps": 1}, "is not agent_steps"),
        ({"train_steps": 10**9}, "says train_steps"),
        ({"stored": -500, "evicted": 500}, "cannot be negative"),
    ],
)
def test_every_counter_of_a_summary_is_compared(copied, changes, text):
    assert not verify_run(copied).problems
    change_summary(copied, **changes)
    assert any(text in problem for problem in verify_run(copied).problems)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"run": {}, "env": {}}'])
def test_a_config_that_cannot_be_read_is_found(copied, text):
    (copied / "config.json").write_text(text)
    assert any("config.json cannot be read" in problem for problem in verify_run(copied).problems)


@pytest.mark.parametrize("word", ["sha256", "bytes", "files", "facts"])
def test_a_manifest_with_another_word_in_it_is_no_traceback(copied, word):
    path = min(copied.glob("checkpoints/step-*/manifest.json"))
    path.write_text(path.read_text().replace(f'"{word}"', '"other"'))
    problems = verify_run(copied).problems
    assert problems
    assert all(str(path.parent) in problem for problem in problems)


def test_shards_that_are_missing_or_of_another_run_are_found_and_copies_are_left_alone(copied):
    shutil.copytree(copied / "replay" / "shard-0", copied / "replay" / "shard-0.bak")
    (copied / "replay" / "shard-0" / "segment-copy.wal").touch()
    assert not verify_run(copied).problems
    assert main(["export", str(copied), str(copied / "data.npz")]) == 0
    shutil.copytree(copied / "replay" / "shard-0", copied / "replay" / "shard-2")
    shutil.rmtree(copied / "replay" / "shard-1")
    problems = "\n".join(verify_run(copied).problems)
    assert "shard-1 is missing" in problems
    assert "shard-2 is none of the run's 2 shards" in problems
    assert "says that it is shard 0" in problems


def test_a_run_that_goes_on_is_not_compared_with_how_it_ended_before(copied):
    change_summary(copied, inserted=-9, stored=-9)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(copied / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert not verify_run(copied).problems
        (copied / "summary.json").rename(copied / "later.json")
        assert not verify_run(copied).problems, "a run that begins has none yet"
    finally:
        holder.communicate(b"\n")
    assert verify_run(copied).problems == ["summary.json is missing"]
    (copied / "later.json").rename(copied / "summary.json")
    assert any("says inserted" in problem for problem in verify_run(copied).problems)


def open_shard(folder, extras=None, **settings):
    return ReplayShard(
        0,
        ENV.columns(extras or {}),
        SAMPLING,
        directory=folder,
        **{"capacity_rows": 500, **settings},
    )


def append(shard, seq):
    rows = {name: spec.zeros(ROWS) for name, spec in shard.columns.items()}
    rows["obs"] = np.stack(
        [np.zeros(ROWS), np.arange(seq * ROWS, (seq + 1) * ROWS)], axis=1
    ).astype(np.int64)
    rows["is_first"][0] = seq == 0
    shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, rows))


def test_no_flipped_bit_of_a_shards_small_files_is_overlooked(tmp_path):
    shard = open_shard(tmp_path)
    for seq in range(4):
        append(shard, seq)
    shard.snapshot()
    shard.close()
    assert not verify_shard(tmp_path).problems
    path = tmp_path / "shard.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 7]) + data[place + 1 :])
        found = verify_shard(tmp_path)
        assert found.problems or found.index != 0, path.read_bytes()
    path.write_bytes(data)
    snapshots = json.loads((tmp_path / "marks.json").read_text())
    for name in ("segment", "offset", "next_row", "oldest_segment"):
        for by in (1, -1):
            changed = [{**snapshots[0], name: snapshots[0][name] + by}]
            (tmp_path / "marks.json").write_text(json.dumps(changed))
            assert verify_shard(tmp_path).problems or (name, by) == ("oldest_segment", 1), changed


def test_a_shard_keeps_the_newest_rows_of_its_capacity_and_verify_counts_just_these(tmp_path):
    shard = open_shard(tmp_path, capacity_rows=45, segment_bytes=1000)
    for seq in range(30):
        append(shard, seq)
    shard.close()
    found = verify_shard(tmp_path)
    assert found.rows > 45
    assert found.newest(45) == shard.row_counters().stored == 45
    assert found.newest(10**6) == found.rows


def test_snapshots_that_are_made_and_dropped_while_the_journal_is_read_are_no_damage(
    tmp_path, monkeypatch
):
    shard = open_shard(tmp_path, {"latent": ArraySpec((2,))})
    real = module.read_journal
    for seq in range(5):
        append(shard, seq)
    assert shard.snapshot().mutable_file

    def read(folder, damage):
        yield from real(folder, damage)
        for seq in range(5, 8):
            append(shard, seq)
            shard.snapshot()

    monkeypatch.setattr(module, "read_journal", read)
    assert not verify_shard(tmp_path).problems


def test_a_segment_that_is_evicted_while_the_journal_is_read_is_no_damage(tmp_path, monkeypatch):
    shard = open_shard(tmp_path, capacity_rows=60, segment_bytes=1000)
    real = module.read_journal
    seqs = iter(range(1000))
    for _ in range(60):
        append(shard, next(seqs))
    shard.snapshot()
    journal = shard.journal
    first = journal.segments[0]
    last = journal.segments[-1]

    def read(folder, damage):
        for record in real(folder, damage):
            yield record
            while journal.segments[0] < (first + last + 1) // 2:
                append(shard, next(seqs))
                shard.snapshot()

    assert last - first > 3
    monkeypatch.setattr(module, "read_journal", read)
    found = verify_shard(tmp_path)
    assert not found.problems
    monkeypatch.setattr(module, "read_journal", real)
    journal.path(journal.segments[1]).unlink()
    assert any("a segment begins with" in problem for problem in verify_shard(tmp_path).problems), (
        "no one evicts from the middle"
    )
