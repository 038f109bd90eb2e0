"""The train ratio of a run on Ray, over many workers and over dead learners and coordinators."""

import os
import signal

import pytest

from tests.integration.running import PATIENCE, launched
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300 * PATIENCE)]


def owed(plan, summary):
    """Positions that the run owes to training, by its own counters."""
    limits = plan.limits
    steps = summary["agent_steps"] - limits.prefill_agent_steps
    return limits.train_ratio * steps + limits.pretrain_positions - summary["replayed_steps"]


@pytest.mark.long
def test_many_workers_stop_where_the_run_ends_and_what_they_made_is_trained(tmp_path):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --workers 8 --envs-per-worker 4 --env-steps 900 "
        "--train-ratio 12 --eval-episodes 0 --metrics-port 0 "
        f"--inference central --run-dir {folder}"
    ).split()
    plan = resolve(parse([*words, "--runtime", "ray"]))
    with launched(folder, *words, "--runtime", "ray") as run:
        assert run.finish(200) == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert 900 <= summary["agent_steps"] < 904, "less than one step per env of a worker beyond"
    assert abs(owed(plan, summary)) <= plan.limits.slack_insert
    assert summary["rows"]["lost_open"] == 0


@pytest.mark.long
@pytest.mark.chaos
def test_updates_that_die_with_learners_and_a_coordinator_are_made_again(tmp_path):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --workers 2 --env-steps 10000000 --train-ratio 12 "
        "--eval-episodes 0 --metrics-port 0 --learner.checkpoint-every-s 3600 "
        f"--run-dir {folder}"
    ).split()
    plan = resolve(parse([*words, "--runtime", "ray"]))
    updates = []
    lost = 0
    with launched(folder, *words) as run:
        for kills in (1, 2):
            run.wait_until(lambda: run.summary().get("train_steps", 0) > 60, 120)
            updates.append(run.summary()["train_steps"])
            os.kill(run.pids("ray::LearnerRole")[0], signal.SIGKILL)
            if kills == 2:
                os.kill(run.pids("ray::CoordinatorRole")[0], signal.SIGKILL)
            run.wait_until(lambda kills=kills: run.summary()["restarts"]["learner"] == kills, 60)
            run.wait_until(lambda lost=lost: run.summary()["updates_lost"] > lost, 60)
            lost = run.summary()["updates_lost"]
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 60, 120)
        most = plan.limits.slack_insert + plan.limits.batch_positions
        run.wait_until(lambda: owed(plan, run.summary()) <= most, 120)
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        text = run.output.read_text()
    assert summary["updates_lost"] >= updates[0], "there was no checkpoint to go on from"
    assert "updates were lost with the learner" in text
    assert -plan.limits.slack_sample <= owed(plan, summary)
    made_again = summary["train_steps"] * plan.limits.batch_positions
    assert made_again == summary["replayed_steps"]
