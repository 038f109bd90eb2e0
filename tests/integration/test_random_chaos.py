"""Two minutes of random kills: the books balance, the ratio holds, and the run goes on, also after its driver died."""

import os
import random
import signal
import time

import pytest

from tests.integration.running import launched
from worldloom.training.checkpoints import CheckpointStore

SECONDS = 120.0
VICTIMS = ("Learner", "Learner", "Shard", "Worker", "Hub", "Ledger", "WeightStore")

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900)]


def test_two_minutes_of_random_kills_and_a_dead_driver(tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    common = ["--run-dir", str(folder), "--metrics-port", "0", "--actors.max-restarts", "1000"]
    words = "--preset debug --env toy:counting --workers 2 --learners 2 --replay.shards 2 --eval-episodes 0 --env-steps 100000000"
    with launched(folder, *words.split(), "--learner.checkpoint-every-s", "1", *common) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 150, 180)
        run.wait_until(lambda: CheckpointStore(folder / "checkpoints").folders(), 60)
        slowest, end = 0.0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            kind = rng.choice(VICTIMS)
            pids = run.wait_until(lambda kind=kind: run.pids(f"ray::{kind}Role"), 90)
            before, began = run.summary()["train_steps"], time.monotonic()
            os.kill(rng.choice(pids), signal.SIGKILL)
            if kind == "Learner":  # mostly in the middle of a checkpoint, a publish or a sample: each happens every second
                lives = run.summary()["restarts"]["learner"]
                run.wait_until(lambda lives=lives: run.summary()["restarts"]["learner"] > lives, 60)
                run.wait_until(lambda before=before: run.summary()["train_steps"] > before, 120)
                slowest = max(slowest, time.monotonic() - began)
            time.sleep(rng.uniform(0.5, 5.0))
        print(f"slowest learner kill -> training beyond where it was: {slowest:.1f} s")
        before = run.summary()
        run.process.send_signal(signal.SIGKILL)  # the driver
    with launched(folder, "--resume", str(folder), "--env-steps", str(before["env_steps"] + 400), "--metrics-port", "0") as run:
        assert run.finish(240) == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert summary["status"] == "completed"
    rows = summary["rows"]
    assert rows["inserted"] == rows["stored"] + rows["evicted"] + rows["lost_acked"]
    assert rows["lost_acked"] == 0
    assert summary["env_steps"] >= before["env_steps"] + 400
    assert summary["policy_version"] > before["policy_version"] or summary["train_steps"] > before["train_steps"]
