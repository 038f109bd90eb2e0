"""The lock-step runtime: what it stores, and that a resumed run equals one that was never
interrupted.
"""

import json
import logging

import pytest
import torch

from tests.integration.running import check_counting, read_journals, rows_of
from tests.worldloom_dist.local_runs import assert_equal_trees, flat, newest_state
from tests.worldloom_dist.small_runs import start
from worldloom.core.exceptions import TrainingError
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.actors.evaluation import Evaluation, Evaluator
from worldloom_dist.evaluate import evaluate


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def payloads(folder) -> dict:
    return {
        stream: [stored.chunk for stored in chunks]
        for stream, chunks in read_journals(folder).items()
    }


@pytest.mark.parametrize("env", ["toy:point", "gym:Pendulum-v1"])
def test_train_n_equals_train_half_kill_resume_half(tmp_path, env, caplog):
    words = ["--env", env, "--workers", "2", "--env-steps", "180"]
    assert start(tmp_path / "whole", *words).run() == "completed"
    broken = start(tmp_path / "broken", *words)
    broken.begin()
    # a checkpoint at 120, then 30 steps that the kill takes away
    while broken.report.env_steps < 150:
        broken.turn()
    broken.runtime.replay.close()  # as death does: the lock goes, everything in memory is lost
    saved = newest_state(tmp_path / "broken")["learner"]["train_steps"]
    assert 0 < saved < broken.runtime.learner.train_steps
    resumed = start(tmp_path / "broken", *words)
    with caplog.at_level(logging.INFO):
        assert resumed.run() == "completed"
    assert "goes on from step-" in caplog.text, "and does not begin again"
    whole = newest_state(tmp_path / "whole")
    again = newest_state(tmp_path / "broken")
    assert_equal_trees(whole["learner"], again["learner"])
    assert_equal_trees(whole["limiter"], again["limiter"])
    assert payloads(tmp_path / "whole") == payloads(tmp_path / "broken")


def test_a_run_that_is_resumed_and_killed_at_once_does_not_claim_to_have_ended(
    tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    assert start(folder, "--env-steps", "100").run() == "completed"
    before = json.loads((folder / "summary.json").read_text())
    seen = []
    resumed = start(folder, "--env-steps", "200")

    def die():
        """Look at what a kill would leave; a KeyboardInterrupt has the summary written
        once more.
        """
        seen.append(json.loads((folder / "summary.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(resumed.runtime, "start", die)
    with pytest.raises(KeyboardInterrupt):
        resumed.run()
    assert seen[0]["status"] == "running"
    assert (seen[0]["env_steps"], seen[0]["rows"]) == (before["env_steps"], before["rows"])


def test_equal_seeds_give_equal_runs_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert start(tmp_path / name, "--env-steps", "100", "--seed", seed).run() == "completed"
    a, b, c = (payloads(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_evaluate_gives_the_number_of_the_last_evaluation_and_its_checkpoint_is_the_best(tmp_path):
    run = start(tmp_path / "run", "--env-steps", "100", "--eval-episodes", "3")
    assert run.run() == "completed"
    torch.set_num_threads(2)  # as in a process of its own
    found = evaluate(tmp_path / "run")
    assert (
        found["returns"]
        == json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["returns"]
    )
    assert torch.get_num_threads() == 2
    assert (
        evaluate(tmp_path / "run", checkpoint="best")["train_steps"]
        == found["train_steps"]
        == run.runtime.learner.train_steps
    )


def test_the_best_evaluation_keeps_its_weights_wherever_checkpoints_are_due(tmp_path, monkeypatch):
    words = ["--env-steps", "180", "--eval-every", "40", "--envs-per-worker", "3"]
    words += ["--eval-episodes", "1", "--learner.checkpoint-every-steps", "100000"]
    run = start(tmp_path / "run", *words)
    scores = iter([1.0, 100.0, 2.0, 0.0, 0.0, 0.0])
    seen = {}

    def evaluate_once(self, **_):
        seen[next(scores)] = run.runtime.learner.train_steps
        score = list(seen)[-1]
        return Evaluation((score,), (1,), run.runtime.weights.version(), {}, 0)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_once)
    assert run.run() == "completed"
    store = CheckpointStore(tmp_path / "run/checkpoints")
    facts = store.facts(store.find("best"))
    assert facts["score"] == 100.0
    assert facts["train_steps"] == seen[100.0] < run.runtime.learner.train_steps
    monkeypatch.undo()
    assert evaluate(tmp_path / "run", checkpoint="best")["train_steps"] == seen[100.0]


def test_counting_rows_arrive_whole_and_the_ratio_is_exact(tmp_path):
    run = start(
        tmp_path / "run",
        "--env",
        "toy:counting",
        "--workers",
        "2",
        "--envs-per-worker",
        "2",
        "--env-steps",
        "400",
    )
    assert run.run() == "completed"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    env = EnvSpec.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())["env"])
    streams = read_journals(tmp_path / "run")
    assert len(streams) == 4
    assert (
        sum(check_counting(rows_of(chunks, env)) for chunks in streams.values())
        == summary["agent_steps"]
    )
    assert (
        summary["rows"]["inserted"]
        == summary["rows"]["stored"]
        == sum(len(rows_of(c, env)["reward"]) for c in streams.values())
    )
    limits = run.plan.limits
    owed = (
        limits.train_ratio * (summary["agent_steps"] - limits.prefill_agent_steps)
        + limits.pretrain_positions
    )
    assert owed - limits.batch_positions < summary["replayed_steps"] <= owed


def test_ten_bad_updates_in_a_row_end_the_run_and_say_where_the_batches_are(tmp_path):
    run = start(tmp_path / "run", "--env-steps", "400")
    state = run.runtime.learner.agent.state_dict()
    weights = [
        t
        for t in flat(state).values()
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dim() >= 2
    ]
    for tensor in weights:
        tensor.fill_(float("nan"))
    run.runtime.learner.agent.load_state_dict(state)
    with pytest.raises(TrainingError, match="10 updates in a row"):
        run.run()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "10 updates in a row" in summary["error"]
    assert len(list((tmp_path / "run" / "nonfinite").glob("update-*.npz"))) == 10
