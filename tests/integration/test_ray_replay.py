"""Replay on a real local Ray: disks that go, shards that die together, files that come in and out
of a run that goes on.
"""

import json
import os
import shutil
import signal
import time

import pytest

from tests.integration.running import launched
from worldloom_dist.replay.__main__ import main
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, StoredChunk

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

WORDS = [
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


def imported_rows(folder):
    rows = 0
    for shard in folder.glob("replay/shard-*"):
        for record in read_journal(shard, JournalDamage()):
            if record.kind == CHUNK:
                chunk = StoredChunk.unpack(record.payload).chunk
                rows += chunk.num_rows if chunk.stream.is_imported else 0
    return rows


@pytest.mark.chaos
@pytest.mark.long
def test_a_lost_disk_and_two_shards_killed_at_once_leave_books_that_add_up_while_files_come_and_go(
    tmp_path, capsys
):
    folder = tmp_path / "run"
    data = str(tmp_path / "data.npz")
    words = [
        *WORDS,
        "--run-dir",
        str(folder),
        "--env-steps",
        "100000000",
        "--metrics-port",
        "0",
        "--train-ratio",
        "6",
    ]
    with launched(folder, *words, "--replay.selector", "0.5*uniform+0.5*prioritised") as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 50, 180)
        assert main(["export", str(folder), data]) == 0
        assert main(["import", str(folder), data]) == 0
        assert "is running" in capsys.readouterr().out
        rows = run.wait_until(lambda: imported_rows(folder), 60)
        run.wait_until(lambda: f"{data}: " in run.output.read_text(), 30)
        # its shard lives, and may write a file meanwhile
        while (folder / "replay" / "shard-0").exists():
            shutil.rmtree(folder / "replay" / "shard-0", ignore_errors=True)
        for pid in run.pids("ray::ShardRole"):
            os.kill(pid, signal.SIGKILL)
        run.wait_until(lambda: run.summary()["restarts"].get("shard", 0) >= 2, 60)
        run.wait_until(lambda: run.summary()["rows"]["lost_acked"], 60)
        run.wait_until(lambda: "are back from the journal" in run.output.read_text(), 30)
        stored = run.summary()["rows"]["stored"]
        run.wait_until(lambda: run.summary()["rows"]["stored"] > stored + 100, 60)
        # the driver, and with it the coordinator and all that it knew
        run.process.send_signal(signal.SIGKILL)
        run.process.wait(30)
        before = run.summary()["rows"]
    lost = before["lost_acked"]
    shutil.rmtree(folder / "replay" / "shard-1")
    with launched(folder, "--resume", str(folder), "--metrics-port", "0") as run:
        run.wait_until(lambda: run.summary()["rows"]["lost_acked"] > lost, 120)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
    counters = summary["rows"]
    assert counters["inserted"] >= before["inserted"]
    assert counters["inserted"] == counters["stored"] + counters["evicted"] + counters["lost_acked"]
    assert 0 < counters["lost_acked"] < counters["inserted"]
    assert rows > 0
    assert "acknowledged rows, because a shard came back without them" in run.output.read_text()
    assert main(["verify", str(folder)]) == 0, capsys.readouterr().out


@pytest.mark.long
@pytest.mark.chaos
def test_a_shard_that_hangs_costs_training_seconds_and_is_replaced_once(tmp_path, capsys):
    folder = tmp_path / "run"
    with launched(
        folder, *WORDS, "--run-dir", str(folder), "--env-steps", "100000000", "--metrics-port", "0"
    ) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 100, 180)
        os.kill(run.pids("ray::ShardRole")[0], signal.SIGSTOP)
        hung_at = time.monotonic()
        before = run.wait_until(
            lambda: "has said nothing" in run.output.read_text() and run.summary(), 60
        )
        goes_on = run.wait_until(
            lambda: run.summary()["train_steps"] > before["train_steps"] + 50 and run.summary(), 60
        )
        seconds = [time.monotonic() - hung_at]
        assert not goes_on["restarts"].get("shard"), "it hung all the time"
        run.wait_until(lambda: run.summary()["restarts"].get("shard"), 90)
        seconds.append(time.monotonic() - hung_at)
        print(
            "seconds until fifty more updates, and until it was replaced:",
            [round(s, 1) for s in seconds],
        )
        steps = run.summary()["agent_steps"]
        run.wait_until(lambda: run.summary()["agent_steps"] > steps + 200, 60)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
    assert summary["restarts"]["shard"] == 1
    assert summary["rows"]["lost_acked"] == 0
    assert main(["verify", str(folder)]) == 0, capsys.readouterr().out


@pytest.mark.long
def test_a_run_without_an_env_trains_on_ray_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    data = str(tmp_path / "data.parquet")
    with launched(
        folder, *WORDS, "--runtime", "local", "--run-dir", str(folder), "--env-steps", "300"
    ) as run:
        assert run.finish() == 0, run.output.read_text()
    assert main(["export", str(folder), data]) == 0
    offline = tmp_path / "offline"
    words = [
        "--preset",
        "debug",
        "--env",
        "none",
        "--replay.load",
        data,
        "--metrics-port",
        "0",
        "--replay.shards",
        "2",
    ]
    for words_now, steps in (
        ([*words, "--run-dir", str(offline)], 200),
        (["--resume", str(offline)], 300),
    ):
        with launched(offline, *words_now, "--train-steps", str(steps)) as run:
            assert run.finish() == 0, run.output.read_text()
            assert run.leftovers() == []
        summary = json.loads((offline / "summary.json").read_text())
        assert (summary["status"], summary["train_steps"], summary["env_steps"]) == (
            "completed",
            steps,
            0,
        )
        assert summary["rows"]["inserted"] == summary["rows"]["stored"] > 300
    assert main(["verify", str(offline)]) == 0
