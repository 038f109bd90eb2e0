"""A run that is stopped a moment after one of its roles has died or hangs ends in order, and what
it says of itself is right.
"""

import os
import signal

import pytest

from tests.integration.running import PATIENCE, launched
from worldloom_dist.replay.__main__ import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(400 * PATIENCE),
]

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


TITLES = ["Coordinator", "Shard", "Hub", "Worker", "Inference", "WeightStore"]
GONE = [
    ("Learner", signal.SIGKILL),
    *((title, how) for title in TITLES for how in (signal.SIGKILL, signal.SIGSTOP)),
]


@pytest.mark.parametrize(("title", "how"), GONE)
def test_a_role_that_is_gone_in_the_last_moment_makes_no_failure_of_a_stop(
    tmp_path, capsys, title, how
):
    folder = tmp_path / "run"
    words = [
        *WORDS,
        "--run-dir",
        str(folder),
        "--env-steps",
        "100000000",
        "--metrics-port",
        "0",
        "--inference",
        "central",
    ]
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 100, 180)
        os.kill(run.pids(f"ray::{title}Role")[0], how)
        run.process.send_signal(signal.SIGINT)
        assert run.finish(150) == 0, run.output.read_text()
        assert run.leftovers() == []
        summary = run.summary()
    assert summary["status"] == "stopped"
    assert summary["rows"]["lost_acked"] == 0
    if (title, how) != (
        "Shard",
        signal.SIGSTOP,
    ):  # its final counters is missing, and the log says so
        assert main(["verify", str(folder)]) == 0, capsys.readouterr().out


def test_a_learner_that_hangs_in_the_last_moment_fails_the_run_which_says_so_and_goes_on_later(
    tmp_path, capsys
):
    """No one else can write the last checkpoint."""
    folder = tmp_path / "run"
    words = [*WORDS, "--run-dir", str(folder), "--env-steps", "100000000", "--metrics-port", "0"]
    with launched(folder, *words, "--learner.checkpoint-every-s", "2") as run:
        run.wait_until(
            lambda: (
                run.summary().get("train_steps", 0) > 100 and any(folder.glob("checkpoints/step-*"))
            ),
            180,
        )
        os.kill(run.pids("ray::LearnerRole")[0], signal.SIGSTOP)
        run.process.send_signal(signal.SIGINT)
        assert run.finish(240) == 1, run.output.read_text()
        assert run.leftovers() == []
        summary = run.summary()
    assert summary["status"] == "failed"
    assert "the learner did not write a last checkpoint; earlier ones are kept" in summary["error"]
    assert main(["verify", str(folder)]) == 0, capsys.readouterr().out
    target = str(summary["env_steps"] + 200)
    with launched(
        folder, "--resume", str(folder), "--env-steps", target, "--metrics-port", "0"
    ) as run:
        assert run.finish() == 0, run.output.read_text()
        assert run.summary()["status"] == "completed"
