"""``python -m worldloom_dist.replay`` and runs without an env, over real run folders of the
lock-step runtime.
"""

import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest

from tests.worldloom_dist.holding import holding
from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state
from tests.worldloom_dist.local_runs import start as start_run
from tests.worldloom_dist.small_runs import COUNTING, start
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.evaluate import evaluate
from worldloom_dist.ports import RowCounters
from worldloom_dist.replay.__main__ import main
from worldloom_dist.replay.formats.episode_files import open_episodes
from worldloom_dist.replay.history import EpisodeHistory
from worldloom_dist.replay.imports import ImportReport
from worldloom_dist.replay.journal import (
    FRAME,
    Journal,
    JournalDamage,
    JournalHeldError,
    read_journal,
    segment_path,
)
from worldloom_dist.replay.records import CHUNK, StoredChunk
from worldloom_dist.replay.verify_shard import verify_shard
from worldloom_dist.run.folder import RunFolder

SMALL_DREAMER = [
    "--preset",
    "debug",
    "--runtime",
    "local",
    "--agent",
    "dreamerv3:ci",
    "--agent.batch-size",
    "4",
    "--agent.batch-length",
    "8",
    "--agent.deter",
    "64",
    "--agent.imagine-length",
    "3",
]


def test_exported_episodes_are_the_counting_ones_and_train_a_model_without_an_env(
    run_dir, tmp_path, capsys
):
    for name in ("data.npz", "data.parquet"):
        assert main(["export", str(run_dir), str(tmp_path / name)]) == 0
    assert "rows of" in capsys.readouterr().out
    opened = open_episodes(str(tmp_path / "data.npz"))
    assert opened.env.name == "toy:counting"
    episodes = list(opened.episodes)
    rows = sum(len(episode["is_first"]) for episode in episodes)
    for episode in episodes:
        np.testing.assert_array_equal(episode["obs"][:, 1], np.arange(len(episode["is_first"])))
        np.testing.assert_array_equal(episode["reward"], episode["obs"][:, 1])
    words = [
        "--env",
        "none",
        "--replay.load",
        str(tmp_path / "data.npz"),
        "--train-steps",
        "30",
        "--replay.shards",
        "2",
    ]
    run = start(tmp_path / "offline", *words, "--learner.checkpoint-every-steps", "10")
    assert run.run() == "completed"
    summary = json.loads((tmp_path / "offline" / "summary.json").read_text())
    assert (summary["train_steps"], summary["env_steps"]) == (30, 0)
    assert summary["rows"]["inserted"] == summary["rows"]["stored"] == rows
    assert main(["verify", str(tmp_path / "offline")]) == 0
    assert evaluate(tmp_path / "offline", episodes=2)["episodes"] == 2, (
        "in the env that the file names"
    )
    longer = start(tmp_path / "offline", *words[:-4], "--train-steps", "50", "--replay.shards", "2")
    assert longer.run() == "completed"
    after = json.loads((tmp_path / "offline" / "summary.json").read_text())
    assert (after["train_steps"], after["rows"]["inserted"], after["rows"]["duplicate"]) == (
        50,
        rows,
        0,
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_of_others_goes_through_a_run_and_comes_out_as_it_was(tmp_path, capsys, shards):
    end = np.arange(200) % 10 == 9
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.standard_normal((200, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (200, 2)).astype(np.float32),
        "rewards": end.astype(np.float32),
        "terminals": end & (np.arange(200) < 100),
        "timeouts": end & (np.arange(200) >= 100),
    }
    np.savez(tmp_path / "in.npz", **arrays)
    words = [
        "--env",
        "none",
        "--replay.load",
        str(tmp_path / "in.npz"),
        "--train-steps",
        "2",
        "--replay.shards",
        str(shards),
    ]
    assert start(tmp_path / "run", *words).run() == "completed"
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as out:
        for theirs, ours in (
            ("observations", "obs"),
            ("actions", "actions"),
            ("rewards", "rewards"),
            ("timeouts", "truncated"),
        ):
            np.testing.assert_array_equal(arrays[theirs], out[ours])
            assert arrays[theirs].dtype == out[ours].dtype
        np.testing.assert_array_equal(arrays["terminals"], out["dones"] & ~out["truncated"])


def test_an_import_says_what_it_did_not_use_and_what_has_no_room(run_dir, tmp_path, capsys):
    folder = distributed(run_dir, tmp_path / "run")
    env = json.loads((run_dir / "config.json").read_text())["env"]
    shape, (width,) = (60, *env["obs"]["obs"]["shape"]), env["action"]["action"]["shape"]
    np.savez(
        tmp_path / "f.npz",
        obs=np.zeros(shape),
        actions=np.zeros((60, width)),
        rewards=np.ones(60),
        mood=np.zeros(3),
    )
    assert main(["import", str(folder), str(tmp_path / "f.npz")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stored 61 rows of 1 episodes"
    assert "1 episodes do not say what their last action led to" in said[1]
    assert said[2] == "arrays that are not used: mood"
    assert "all 60 transitions are one episode" in said[3]
    assert (
        ImportReport(rows=90, evicted_rows=30)
        .sentences[1]
        .startswith("replay has no room for 30 of the rows")
    )


def test_dreamerv3_finds_the_latents_of_imported_rows_by_training(run_dir, tmp_path):
    main(["export", str(run_dir), str(tmp_path / "data.npz")])
    words = ["--env", "none", "--replay.load", str(tmp_path / "data.npz"), "--train-steps", "20"]
    run = start_run(tmp_path / "offline", *SMALL_DREAMER, *words, "--metrics-port", "0")
    windows = []
    sample, run.runtime.replay.sample = (
        run.runtime.replay.sample,
        lambda request: windows.append(sample(request)) or windows[-1],
    )
    assert run.run() == "completed"
    assert not windows[0].columns["latent/deter"].any(), "a file has none"
    stored = run.runtime.replay.shards[0].rows.buffer.export_mutable()[1]["latent/deter"]
    assert (stored.any(axis=1)).mean() > 0.5, "each update writes those of the rows that it trained"
    lines = [
        json.loads(line)
        for line in (tmp_path / "offline" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [
        value
        for line in lines
        for name, value in line.items()
        if name.startswith("loss{") and value is not None
    ]
    assert losses
    assert np.isfinite(losses).all()


def test_an_offline_run_that_is_killed_and_resumed_equals_one_that_is_not(run_dir, tmp_path):
    main(["export", str(run_dir), str(tmp_path / "data.npz")])
    words = [
        "--env",
        "none",
        "--replay.load",
        str(tmp_path / "data.npz"),
        "--learner.checkpoint-every-steps",
        "100",
    ]
    assert start(tmp_path / "whole", *words, "--train-steps", "20").run() == "completed"
    assert start(tmp_path / "parts", *words, "--train-steps", "8").run() == "completed"
    assert start(tmp_path / "parts", *words, "--train-steps", "20").run() == "completed"
    assert_equal_trees(
        newest_state(tmp_path / "whole")["learner"], newest_state(tmp_path / "parts")["learner"]
    )


def test_a_file_that_is_imported_into_a_lock_step_run_is_sampled_when_it_goes_on(
    run_dir, tmp_path, capsys
):
    main(["export", str(run_dir), str(tmp_path / "data.npz")])
    rows = sum(
        len(episode["is_first"]) for episode in open_episodes(str(tmp_path / "data.npz")).episodes
    )
    shutil.copytree(run_dir, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert main(["import", str(tmp_path / "run"), str(tmp_path / "data.npz")]) == 0
    assert "when the run goes on" in capsys.readouterr().out
    assert start(tmp_path / "run", *COUNTING, "--env-steps", "190").run() == "completed"
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["rows"]["inserted"] - rows - before["rows"]["inserted"] in range(38, 60)
    assert 190 <= after["agent_steps"] < 194, "rows of a file are no agent steps"


def test_files_to_load_are_found_from_another_folder_when_a_run_goes_on(
    run_dir, tmp_path, monkeypatch
):
    assert main(["export", str(run_dir), str(tmp_path / "data.npz")]) == 0
    monkeypatch.chdir(tmp_path)
    words = ["--env", "none", "--replay.load", "data.npz", "--train-steps"]
    run = start(tmp_path / "run", *words, "3")
    assert run.plan.config.replay.load == str(tmp_path / "data.npz")
    run.runtime.close()
    with pytest.raises(ConfigurationError, match=r"replay\.load: .*missing\.npz"):
        start(tmp_path / "other", "--env", "none", "--replay.load", "missing.npz")


def test_wrong_input_gets_one_sentence_and_status_two_or_one(run_dir, tmp_path, capsys):
    for words, status, text in (
        (["export", str(tmp_path), "f.npz"], 2, "holds no run"),
        (["export", str(run_dir), "f.csv"], 2, "no known kind of file"),
        (["import", str(run_dir), str(tmp_path / "no.npz")], 2, "no.npz"),
        (["verify", str(tmp_path)], 2, "holds no run"),
        (["verify", str(tmp_path / "nowhere")], 2, "is no folder"),
    ):
        assert main(words) == status
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert text in error
        assert error.count("\n") == 1


def distributed(run_dir, folder):
    """A copy of a run whose rows are stored by an import at once, because its config says that it
    ran on Ray.
    """
    shutil.copytree(run_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["run"]["runtime"] = "ray"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_that_ended_stays_whole_when_files_are_imported_and_says_so_exactly(
    run_dir, tmp_path, capsys
):
    folder = distributed(run_dir, tmp_path / "run")
    file = str(tmp_path / "data.npz")
    main(["export", str(run_dir), file])
    rows = json.loads((folder / "summary.json").read_text())["rows"]["inserted"]
    for known in (0, rows):
        assert main(["import", str(folder), file]) == 0
        assert f"stored {rows - known} rows" in capsys.readouterr().out
        assert main(["verify", str(folder)]) == 0, capsys.readouterr().out
    text = (folder / "summary.json").read_text()
    for wrong in (rows - 1, 2 * rows + 1):
        changed = text.replace(f'"inserted": {rows}', f'"inserted": {wrong}').replace(
            f'"stored": {rows}', f'"stored": {wrong}'
        )
        (folder / "summary.json").write_text(changed)
        assert main(["verify", str(folder)]) == 1
        assert f"says inserted {wrong}" in capsys.readouterr().out


def test_rows_of_a_file_do_not_stand_for_those_that_the_disk_of_a_stopped_run_has_lost(
    run_dir, tmp_path
):
    folder = distributed(run_dir, tmp_path / "run")
    file = str(tmp_path / "data.npz")
    main(["export", str(run_dir), file])
    shard = folder / "replay" / "shard-0"
    held = verify_shard(shard)
    RunFolder(folder).write_counters(
        {
            "0": dataclasses.asdict(
                RowCounters(held.inserted, held.rows, agent_steps=held.agent_steps)
            )
        }
    )
    *_, last = (r for r in read_journal(shard, JournalDamage()) if r.kind == CHUNK)
    lost = StoredChunk.unpack(last.payload).chunk
    os.truncate(segment_path(shard, last.segment), last.offset - FRAME.size)
    assert main(["import", str(folder), file]) == 0
    found = verify_shard(shard)
    assert (found.lost, found.agent_steps) == (lost.num_rows, held.agent_steps)
    assert found.inserted > held.inserted


def test_a_chunk_that_stands_twice_in_a_journal_is_exported_once(run_dir, tmp_path):
    folder = distributed(run_dir, tmp_path / "run")
    shard = folder / "replay" / "shard-0"
    *_, last = (r for r in read_journal(shard, JournalDamage()) if r.kind == CHUNK)
    path = segment_path(shard, last.segment)
    data = path.read_bytes()
    frame = data[last.offset - FRAME.size : last.offset + len(last.payload)]
    before = sum(len(rows["is_first"]) for rows in EpisodeHistory(folder / "replay").episodes())
    path.write_bytes(data + frame)
    rows = list(EpisodeHistory(folder / "replay").episodes())
    assert sum(len(episode["is_first"]) for episode in rows) == before


def test_an_import_that_fills_the_disk_says_so_and_goes_on_when_there_is_room(
    run_dir, tmp_path, capsys, limit_files
):
    folder = distributed(run_dir, tmp_path / "run")
    file = str(tmp_path / "data.npz")
    main(["export", str(run_dir), file])
    rows = json.loads((folder / "summary.json").read_text())["rows"]["inserted"]
    biggest = max(path.stat().st_size for path in folder.glob("replay/shard-*/segment-*.wal"))
    capsys.readouterr()
    limit_files(biggest + 3000)
    assert main(["import", str(folder), file]) == 1
    limit_files(-1)
    out, error = capsys.readouterr()
    assert "is running" not in out
    assert "stored" not in out
    assert error.startswith("error: ")
    assert "free space" in error
    assert error.count("\n") == 1
    assert main(["verify", str(folder)]) == 0, capsys.readouterr().out
    assert main(["import", str(folder), file]) == 0
    out = capsys.readouterr().out
    assert "rows had been stored before" in out, "the disk took some"
    assert f"stored {rows} rows" not in out
    assert main(["verify", str(folder)]) == 0


def test_only_a_run_that_is_live_is_said_to_store_a_file_within_seconds(run_dir, tmp_path, capsys):
    folder = distributed(run_dir, tmp_path / "run")
    file = str(tmp_path / "data.npz")
    main(["export", str(run_dir), file])
    journal = Journal(folder / "replay" / "shard-1")
    capsys.readouterr()
    assert main(["import", str(folder), file]) == 0
    out = capsys.readouterr().out
    assert "is running" not in out
    assert "another import is at work" in out
    with holding(folder / "lock"):
        assert main(["import", str(folder), file]) == 0
    assert "is running" in capsys.readouterr().out
    with pytest.raises(JournalHeldError) as caught:
        Journal(folder / "replay" / "shard-1")
    journal.close()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (JournalHeldError, str(caught.value))


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_an_export_that_cannot_be_written_says_why_and_leaves_nothing_behind(
    run_dir, tmp_path, capsys, limit_files, suffix
):
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for name, size, status, text in (
        (
            f"folder.{suffix}",
            -1,
            2,
            f"is a folder; name a file, for example {tmp_path}/folder.{suffix}/data.{suffix}",
        ),
        (f"file/data.{suffix}", -1, 2, "name a file in a folder that you may write to"),
        (f"data.{suffix}", 1000, 1, "free space"),
    ):
        limit_files(size)
        assert main(["export", str(run_dir), str(tmp_path / name)]) == status
        limit_files(-1)
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert str(tmp_path / name) in error
        assert text in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_that_cannot_be_written_is_one_sentence_too(
    run_dir, tmp_path, capsys, limit_files
):
    folder = distributed(run_dir, tmp_path / "run")
    file = str(tmp_path / "data.npz")
    main(["export", str(run_dir), file])
    capsys.readouterr()
    limit_files(1)
    assert main(["import", str(folder), file]) == 1
    limit_files(-1)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: ")
    assert error.count("\n") == 1
    assert not list(folder.glob("imports.json*"))


def test_priorities_of_training_change_what_is_drawn_and_are_counted(tmp_path):
    run = start(tmp_path / "run", "--env-steps", "150", "--replay.selector", "prioritised:1")
    applied = []
    real = run.runtime.replay.update_priorities

    def update(windows, priorities):
        real(windows, priorities)
        applied.append(len(priorities))

    run.runtime.learner.update_priorities = update
    assert run.run() == "completed"
    assert sum(applied) == 8 * run.runtime.learner.train_steps
    counts = [
        v
        for k, v in run.runtime.hub.snapshot().items()
        if k.startswith("replay_priority_updates_total")
    ]
    assert counts, "applied and sent are metrics"
    buffer = run.runtime.replay.shards[0].rows.buffer
    weights = buffer.starts.selector.export_weights(np.arange(buffer.capacity_rows))[0, :-1]
    assert len(np.unique(weights[weights > 0])) > 20, "windows have priorities of their own"
