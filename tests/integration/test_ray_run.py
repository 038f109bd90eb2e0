"""The whole system on a real local Ray, as a user starts it."""

import json
import os
import signal
import urllib.request

import pytest

from tests.integration.running import PATIENCE, check_counting, launched, read_journals, rows_of
from tests.ports import free_port
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.evaluate import evaluate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400 * PATIENCE)]

COUNTING = [
    "--preset",
    "debug",
    "--env",
    "toy:counting",
    "--workers",
    "2",
    "--replay.shards",
    "2",
    "--eval-episodes",
    "0",
]
COUNTING += ["--inference", "central"]


def check_rows(folder, summary) -> None:
    """Every acknowledged row is there, once, in its place, and the counters of the summary say the
    same.
    """
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    streams = read_journals(folder)
    decisions = [check_counting(rows_of(chunks, env)) for chunks in streams.values()]
    rows = sum(stored.chunk.num_rows for chunks in streams.values() for stored in chunks)
    counters = summary["rows"]
    assert sum(decisions) == summary["agent_steps"] == summary["env_steps"]
    assert (
        counters["inserted"]
        == counters["stored"] + counters["evicted"] + counters["lost_acked"]
        == rows
    )
    assert counters["lost_acked"] == 0


def test_rows_reach_replay_and_the_run_is_stopped_and_resumed(tmp_path):
    folder = tmp_path / "run"
    port = free_port()
    words = [
        *COUNTING,
        "--run-dir",
        str(folder),
        "--env-steps",
        "100000000",
        "--metrics-port",
        str(port),
    ]
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 100, 180)
        text = (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        )
        # as timeout, Slurm and systemd do: the whole process group
        os.killpg(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0, run.output.read_text()
        stopped = run.summary()
        assert run.leftovers() == []
    assert "worldloom_learner_updates_total" in text
    assert 'worldloom_workers{role="driver"' in text
    assert stopped["status"] == "stopped"
    assert stopped["rows"]["lost_open"] == 0
    check_rows(folder, stopped)
    target = stopped["env_steps"] + 200
    with launched(
        folder, "--resume", str(folder), "--env-steps", str(target), "--metrics-port", "0"
    ) as run:
        assert run.finish() == 0, run.output.read_text()
        resumed = run.summary()
        assert run.leftovers() == []
    assert resumed["status"] == "completed"
    assert target <= resumed["env_steps"] <= target + 2 * 2 * 16, (
        "at most the open chunks of two workers too many"
    )
    assert resumed["train_steps"] > stopped["train_steps"]
    before, after = (tuple(map(int, s["policy_version"].split("."))) for s in (stopped, resumed))
    assert after > before
    assert after[0] == before[0] + 1
    check_rows(folder, resumed)
    assert abs(resumed["train_ratio_actual"] / 12.0 - 1) < 0.25
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest[1]["learner"]["train_steps"] == resumed["train_steps"]


def test_evaluate_gives_the_number_of_the_last_evaluation(tmp_path):
    folder = tmp_path / "run"
    words = [
        "--preset",
        "debug",
        "--env-steps",
        "300",
        "--eval-every",
        "0",
        "--eval-episodes",
        "3",
        "--metrics-port",
        "0",
    ]
    seldom = ["--learner.publish-every-s", "1000", "--learner.publish-every-updates", "50"]
    with launched(folder, *words, *seldom, "--run-dir", str(folder)) as run:
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    published = max(line.get("weights_published_total") or 0 for line in lines)
    updates = summary["train_steps"]
    assert updates > 100
    assert published >= updates // 50, "in 1000 s none would be but for the updates"
    assert published <= updates // 50 + 3, "besides the first version and the last one"
    found = evaluate(folder)
    assert found["returns"] == summary["eval"]["returns"]
    assert found["train_steps"] == summary["train_steps"] == summary["eval"]["version"][1]
    assert evaluate(folder, checkpoint="best")["train_steps"] == found["train_steps"], (
        "its score reached the last checkpoint"
    )


@pytest.mark.chaos
def test_no_killed_process_stops_the_run_or_costs_an_acknowledged_row(tmp_path):
    folder = tmp_path / "run"
    words = [
        *COUNTING,
        "--run-dir",
        str(folder),
        "--env-steps",
        "100000000",
        "--metrics-port",
        "0",
        "--train-ratio",
        "6",
    ]
    kinds = {"worker": "Worker", "shard": "Shard", "learner": "Learner", "inference": "Inference"}
    kinds |= {"coordinator": "Coordinator", "weights": "WeightStore", "hub": "Hub"}
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 100, 180)
        for kind, title in kinds.items():
            victims = run.wait_until(lambda title=title: run.pids(f"ray::{title}Role"))
            before = run.journal_bytes()
            os.kill(victims[0], signal.SIGKILL)
            run.wait_until(lambda kind=kind: run.summary()["restarts"].get(kind), 60)
            run.wait_until(lambda before=before: run.journal_bytes() > before + 2000, 60)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert summary["status"] == "stopped"
    assert {kind: summary["restarts"][kind] for kind in kinds} == dict.fromkeys(kinds, 1)
    assert summary["policy_version"].startswith("2."), (
        "the second learner's versions are above the first one's"
    )
    check_rows(folder, summary)


@pytest.mark.parametrize("env", ["toy:point", "toy:point,toy:mirror"])
def test_one_worker_in_barrier_mode_stores_the_rows_of_the_local_runtime(env, tmp_path):
    common = [
        "--preset",
        "debug",
        "--env",
        env,
        "--env-steps",
        "300",
        "--eval-episodes",
        "0",
        "--learner.threads",
        "1",
        "--inference",
        "local",
    ]
    common += ["--learner.checkpoint-every-steps", "100000", "--metrics-port", "0"]
    for name, own in (("local", ["--runtime", "local"]), ("ray", ["--barrier", "True"])):
        with launched(tmp_path / name, *common, *own, "--run-dir", str(tmp_path / name)) as run:
            assert run.finish() == 0, run.output.read_text()
            assert run.leftovers() == []
    local, ray = (read_journals(tmp_path / name) for name in ("local", "ray"))
    assert local.keys() == ray.keys()
    for stream, chunks in local.items():
        both = list(zip(chunks, ray[stream], strict=False))
        assert len(both) >= 15
        for mine, theirs in both[:-1]:  # the last chunk is cut where a run ends
            assert mine.chunk.payload == theirs.chunk.payload
            assert mine.chunk.version == theirs.chunk.version
    acted = {stored.chunk.version.update for chunks in ray.values() for stored in chunks}
    assert len(acted) > 10, "trained weights acted"
