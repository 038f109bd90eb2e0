"""``--replay.offline-share`` in whole runs: batches have the share, it is counted, a resumed run
has it exactly, and shards that are opened again still know which rows came from files.
"""

import dataclasses
import json

import pytest
import torch

from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state, write_pendulum_rows
from tests.worldloom_dist.lockstep.test_local import payloads
from tests.worldloom_dist.small_runs import start
from worldloom.envs.config import EnvConfig
from worldloom_dist.run.config import RunConfig


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_pendulum_rows(tmp_path_factory.mktemp("rows") / "rows.npz")


def words(rows, share, env_steps=100):
    return [
        *("--env", "gym:Pendulum-v1", "--workers", "2", "--replay.shards", "2"),
        *("--env-steps", str(env_steps), "--replay.load", rows, "--replay.offline-share", share),
    ]


def drawn(folder):
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return [last[f"replay_sampled_windows_total{{source={kind}}}"] for kind in ("run", "file")]


def test_batches_have_the_share_and_it_is_counted(tmp_path, rows):
    run = start(tmp_path / "run", *words(rows, "0.75"))
    assert run.run() == "completed"
    of_run, of_files = drawn(tmp_path / "run")
    assert of_run + of_files == 8 * run.report.counts.train_steps
    assert of_files == 6 * run.report.counts.train_steps


def test_a_run_that_is_killed_goes_on_with_its_share_exactly(tmp_path, rows):
    flags = words(rows, "1:0.2@80", 140)
    assert start(tmp_path / "whole", *flags).run() == "completed"
    broken = start(tmp_path / "broken", *flags)
    broken.begin()
    while broken.report.env_steps < 80:
        broken.turn()
    broken.runtime.replay.close()  # as death does
    resumed = start(tmp_path / "broken", *flags)
    resumed.begin()
    assert sum(shard.window_counts()[1] for shard in resumed.runtime.replay.shards) > 0
    while not resumed.is_complete():
        resumed.turn()
    resumed.finish()
    resumed.runtime.close()
    whole = newest_state(tmp_path / "whole")
    again = newest_state(tmp_path / "broken")
    assert_equal_trees(whole["learner"], again["learner"])
    assert payloads(tmp_path / "whole") == payloads(tmp_path / "broken")


@pytest.mark.parametrize(
    ("share", "change", "load", "sentence"),
    [
        ("0.5", {}, None, "without replay.load none is of files"),
        ("0.5", {"env": EnvConfig(env="none")}, "a.npz", "env is none, so every row is of files"),
        ("2", {}, "a.npz", "must be a share of each batch"),
    ],
)
def test_a_share_that_cannot_be_is_refused(share, change, load, sentence):
    config = dataclasses.replace(RunConfig(), **change)
    replay = dataclasses.replace(config.replay, load=load, offline_share=share)
    problems = dataclasses.replace(config, replay=replay).problems()
    assert len(problems) == 1
    assert sentence in problems[0]
