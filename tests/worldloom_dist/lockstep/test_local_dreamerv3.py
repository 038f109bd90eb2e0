"""DreamerV3 in lock-step: a killed and resumed run equals a whole one, latents in replay included;
reports change nothing.
"""

import json
import logging

import numpy as np
import pytest
import torch

from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state, start
from worldloom_dist.ports import SampleRequest
from worldloom_dist.run.loop import Run

TINY = {
    "deter": 16,
    "hidden": 8,
    "units": 8,
    "stoch": 4,
    "classes": 4,
    "depth": 2,
    "bins": 41,
    "batch-size": 2,
    "batch-length": 6,
    "imagine-length": 3,
    "warmup": 2,
    "report-length": 4,
}
WORDS = [
    *(
        "--agent",
        "dreamerv3:ci",
        *(word for name, value in TINY.items() for word in (f"--agent.{name}", str(value))),
    ),
    *(
        "--train-ratio",
        "3",
        "--runtime",
        "local",
        "--learner.threads",
        "1",
        "--eval-episodes",
        "0",
        "--metrics-port",
        "0",
    ),
    *("--learner.checkpoint-every-steps", "36", "--actors.chunk-rows", "6", "--env", "toy:pixel"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stored_rows(run: Run) -> dict[str, np.ndarray]:
    """A large draw from replay: equal content gives equal windows."""
    return dict(run.runtime.replay.shards[0].sample(SampleRequest(200, (7,))).columns)


def test_train_n_equals_train_half_kill_resume_half(tmp_path, caplog):
    words = [*WORDS, "--workers", "2", "--env-steps", "72", "--learner.report-every-steps", "0"]
    whole = start(tmp_path / "whole", *words)
    assert whole.run() == "completed"
    broken = start(tmp_path / "broken", *words)
    broken.begin()
    # a checkpoint at 36 or soon after, then steps that the kill takes away
    while broken.report.env_steps < 60:
        broken.turn()
    broken.runtime.replay.close()  # as death does: the lock goes, everything in memory is lost
    saved = newest_state(tmp_path / "broken")["learner"]["train_steps"]
    assert 0 < saved < broken.runtime.learner.train_steps
    resumed = start(tmp_path / "broken", *words)
    with caplog.at_level(logging.INFO):
        assert resumed.run() == "completed"
    assert "goes on from step-" in caplog.text, "and does not begin again"
    expected = newest_state(tmp_path / "whole")
    found = newest_state(tmp_path / "broken")
    agent = expected["learner"]["agent"]
    assert expected["learner"]["train_steps"] > 10
    assert any(name.startswith("slow_critic") for name in agent["networks"])
    assert float(agent["normalizer"][-1]) > 0
    assert_equal_trees(expected["learner"], found["learner"])
    assert_equal_trees(expected["limiter"], found["limiter"])
    assert whole.runtime.replay.written_back.applied > 0
    rows = stored_rows(whole)
    assert rows["latent/deter"].any()
    assert_equal_trees(rows, stored_rows(resumed))


def test_reports_are_drawn_and_change_nothing(tmp_path):
    words = [*WORDS, "--workers", "1", "--env-steps", "40"]
    for name, every in (("with", "12"), ("without", "0")):
        run = start(tmp_path / name, *words, "--learner.report-every-steps", every)
        assert run.run() == "completed"
    assert_equal_trees(
        newest_state(tmp_path / "with")["learner"], newest_state(tmp_path / "without")["learner"]
    )
    lines = [
        json.loads(line)
        for line in (tmp_path / "with" / "videos" / "index.jsonl").read_text().splitlines()
    ]
    assert lines[0]["env_steps"] < lines[-1]["env_steps"]
    assert lines[-1]["env_steps"] == run.report.env_steps
    assert {line["name"] for line in lines} == {"open_loop/obs"}
    assert all((tmp_path / "with" / "videos" / line["path"]).stat().st_size for line in lines)
    assert not (tmp_path / "without" / "videos").exists()


def test_without_replay_context_a_run_stores_and_refreshes_no_latents(tmp_path):
    run = start(
        tmp_path / "run",
        *WORDS,
        "--workers",
        "1",
        "--env-steps",
        "30",
        "--agent.replay-context",
        "0",
    )
    assert run.run() == "completed"
    assert run.runtime.learner.train_steps > 0
    assert not any(name.startswith("latent/") for name in stored_rows(run))
    assert run.runtime.replay.written_back == (0, 0)
