"""A learner that is killed exactly while it writes a checkpoint, sends weights, or draws a
batch.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.running import PATIENCE, check_counting, launched, read_journals, rows_of
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(300 * PATIENCE),
]

DEADLY = Path(__file__).parent / "deadly"
PLACES = ("checkpoint", "publish", "sample")
RATIO = 12.0


def test_learner_that_dies_in_a_checkpoint_a_publish_and_a_sample_leaves_a_run_that_adds_up(
    tmp_path,
):
    folder = tmp_path / "run"
    orders = tmp_path / "kill-at"
    orders.mkdir()
    path = os.pathsep.join([str(DEADLY), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    words = (
        f"--preset debug --env toy:counting --workers 2 --train-ratio {RATIO} "
        "--eval-episodes 0 --env-steps 10000000"
    )
    words += f" --learner.checkpoint-every-s 1 --metrics-port 0 --run-dir {folder}"
    with launched(
        folder, *words.split(), env={"PYTHONPATH": path, "WORLDLOOM_KILL_AT": str(orders)}
    ) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 150, 120)
        run.wait_until(lambda: CheckpointStore(folder / "checkpoints").folders(), 60)
        for restarts, place in enumerate(PLACES, start=1):
            before = run.summary()["train_steps"]
            (orders / place).touch()
            run.wait_until(
                lambda restarts=restarts: run.summary()["restarts"]["learner"] == restarts, 60
            )
            assert not (orders / place).exists(), f"it died in a {place}"
            run.wait_until(lambda before=before: run.summary()["train_steps"] > before, 90)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = [check_counting(rows_of(chunks, env)) for chunks in read_journals(folder).values()]
    assert sum(decisions) == summary["agent_steps"]
    assert summary["restarts"]["learner"] == len(PLACES)
    assert summary["policy_version"].startswith(f"{len(PLACES) + 1}.")
    assert summary["train_ratio_actual"] == pytest.approx(RATIO, rel=0.25)
    assert not list(folder.glob("checkpoints/*.tmp")), "the half checkpoint was swept away"
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest[1]["learner"]["train_steps"] == summary["train_steps"]


def test_learner_whose_capture_fails_is_started_once_more_and_updates_eagerly(tmp_path):
    folder = tmp_path / "run"
    orders = tmp_path / "kill-at"
    orders.mkdir()
    (orders / "capture").touch()
    path = os.pathsep.join([str(DEADLY), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    words = "--preset debug --env toy:counting --eval-episodes 0 --env-steps 400 --metrics-port 0"
    with launched(
        folder,
        *words.split(),
        "--run-dir",
        str(folder),
        env={"PYTHONPATH": path, "WORLDLOOM_KILL_AT": str(orders)},
    ) as run:
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert summary["restarts"]["learner"] == 1
    assert summary["eager"] == "an update could not be captured (for a test)"
    assert summary["policy_version"].startswith("2.")
    assert summary["train_steps"] > 4
