"""Two learner ranks on a real local Ray: they train together, one train ratio holds for both, and
one may die.
"""

import os
import signal
import time

import pytest

from tests.integration.running import launched
from worldloom.training.checkpoints import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(240)]
RATIO = 12.0


@pytest.mark.long
def test_one_of_two_ranks_dies_and_the_group_goes_on_from_the_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --learners 2 --eval-episodes 0 --env-steps "
        "100000000 --metrics-port 0"
    )
    with launched(
        folder, *words.split(), "--train-ratio", str(RATIO), "--run-dir", str(folder)
    ) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 150, 120)
        run.wait_until(lambda: CheckpointStore(folder / "checkpoints").folders(), 60)
        ranks = run.wait_until(lambda: run.pids("ray::LearnerRole"))
        assert len(ranks) == 2
        before = run.summary()
        os.kill(ranks[1], signal.SIGKILL)
        killed = time.monotonic()
        run.wait_until(lambda: run.summary()["restarts"]["learner"], 60)
        run.wait_until(lambda: run.summary()["policy_version"].startswith("2."), 90)
        run.wait_until(lambda: run.summary()["train_steps"] > before["train_steps"] + 250, 120)
        print(
            "one rank of two killed -> both train beyond where they were: "
            f"{time.monotonic() - killed:.1f} s"
        )
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert summary["status"] == "stopped"
    assert summary["restarts"]["learner"] == 1, "the group counts as one learner"
    assert summary["rows"]["lost_acked"] == 0
    assert summary["rows"]["inserted"] == summary["rows"]["stored"] + summary["rows"]["evicted"]
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest[1]["learner"]["train_steps"] == summary["train_steps"]
    assert newest[1]["learner"]["replayed_steps"] == summary["train_steps"] * 16 * 3, (
        "a joint batch counts once, not per rank"
    )
    assert abs(summary["train_ratio_actual"] / RATIO - 1) < 0.35
