"""Offline to online on a real local Ray: updates on loaded rows first, then batches mixed of them
and the run's own, over two shards.
"""

import json

import numpy as np
import pytest

from tests.integration.running import PATIENCE, launched, read_journals
from tests.worldloom_dist.local_runs import write_pendulum_rows
from tests.worldloom_dist.small_runs import SMALL, start
from worldloom_dist.replay.__main__ import export_file

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400 * PATIENCE)]


def test_ray_and_local_store_the_same_rows_after_the_same_offline_updates(tmp_path):
    assert start(tmp_path / "data", "--env", "toy:counting", "--env-steps", "120").run()
    data = f"lerobot:{tmp_path / 'rows'}"
    export_file(tmp_path / "data", data)
    small = [word if word != "local" else "" for word in SMALL]
    at = small.index("--runtime")
    common = [
        *(small[:at] + small[at + 2 :]),
        *("--env", "toy:counting", "--workers", "1", "--inference", "local"),
        *("--replay.shards", "2", "--env-steps", "200", "--metrics-port", "0"),
        *("--replay.load", data, "--offline-steps", "30", "--replay.offline-share", "0.5"),
        *("--learner.checkpoint-every-steps", "100000"),
    ]
    for name, own in (("local", ["--runtime", "local"]), ("ray", ["--barrier", "True"])):
        with launched(tmp_path / name, *common, *own, "--run-dir", str(tmp_path / name)) as run:
            assert run.finish() == 0, run.output.read_text()
            assert run.leftovers() == []
    local, ray = (read_journals(tmp_path / name) for name in ("local", "ray"))
    assert local.keys() == ray.keys()
    assert sum(stream.is_imported for stream in local) == 2, "both shards have their share"
    for stream, chunks in local.items():
        both = list(zip(chunks, ray[stream], strict=False))
        for mine, theirs in both[:-1]:  # the last chunk is cut where a run ends
            assert mine.chunk.payload == theirs.chunk.payload
            assert mine.chunk.version == theirs.chunk.version
        if not stream.is_imported:
            acted = [stored.chunk.version.update for stored in chunks]
            assert acted[0] == 30, "nothing acts before the offline updates are made"
            assert acted[-1] > 30
    for name in ("local", "ray"):
        records = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        last = json.loads(records[-1])
        drawn = [last[f"replay_sampled_windows_total{{source={kind}}}"] for kind in ("run", "file")]
        mixed = last["train_steps"] - 30
        assert mixed > 0
        assert sum(drawn) >= 8 * last["train_steps"]
        assert drawn[0] >= 3 * mixed, "half of each batch is of the run's own rows, once it has any"
        assert drawn[1] >= 8 * 30 + 3 * mixed, "and all of it of files before"


def test_an_agent_that_needs_no_prefill_acts_with_what_the_offline_updates_came_to(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    words = [
        *("--env", "gym:Pendulum-v1", "--agent", "dreamerv3:ci", "--workers", "1"),
        *("--agent.batch-length", "8", "--agent.batch-size", "4", "--train-ratio", "8"),
        *("--env-steps", "60", "--eval-episodes", "0", "--metrics-port", "0"),
        *("--replay.load", rows, "--offline-steps", "12", "--run-dir", str(tmp_path / "run")),
    ]
    with launched(tmp_path / "run", *words) as run:
        assert run.finish() == 0, run.output.read_text()
        assert run.leftovers() == []
    own = {s: c for s, c in read_journals(tmp_path / "run").items() if not s.is_imported}
    assert own
    for chunks in own.values():
        assert all(stored.chunk.version.update >= 12 for stored in chunks)


def test_a_file_that_is_bad_behind_its_beginning_ends_the_run_that_waits_for_it(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    with np.load(rows) as found:
        arrays = dict(found)
    arrays["rewards"][30] = np.nan
    np.savez(rows, **arrays)
    words = [
        *("--preset", "debug", "--env", "gym:Pendulum-v1", "--workers", "1"),
        *("--replay.load", rows, "--offline-steps", "12", "--metrics-port", "0"),
    ]
    with launched(tmp_path / "run", *words, "--run-dir", str(tmp_path / "run")) as run:
        assert run.finish() == 1
        said = run.output.read_text()
        assert f"replay.load: nothing can be trained without {rows}, which could not be" in said
        assert "rewards must be finite numbers" in said
        assert run.leftovers() == []
