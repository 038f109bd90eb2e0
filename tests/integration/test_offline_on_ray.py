"""Offline to online on a real local Ray: updates on loaded rows first, then batches mixed of them
and the run's own, over two shards.
"""

import json

import pytest

from tests.integration.running import PATIENCE, launched, read_journals
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
        assert sum(drawn) >= 8 * last["train_steps"]
        assert drawn[1] >= 0.5 * sum(drawn), "half of each batch, and all of it at first"
