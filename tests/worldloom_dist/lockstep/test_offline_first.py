"""Updates on rows from files before the first env step (``--offline-steps``): nothing acts
meanwhile, nothing is owed for them, and a run that is killed in the middle of them goes on exactly.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state, write_pendulum_rows
from tests.worldloom_dist.lockstep.test_local import payloads
from tests.worldloom_dist.small_runs import start
from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom_dist.ports import RowCounters, StepQuestion
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.run.cli import parse
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.resuming import resume_problems
from worldloom_dist.run.view import read_view


@pytest.fixture(autouse=True)
def _small_rounds_on_one_thread(monkeypatch):
    monkeypatch.setattr("worldloom_dist.lockstep.runtime.OFFLINE_UPDATES_PER_ROUND", 10)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_pendulum_rows(tmp_path_factory.mktemp("rows") / "rows.npz")


def words(rows, offline=30, env_steps=60):
    return [
        *("--env", "gym:Pendulum-v1", "--workers", "1", "--env-steps", str(env_steps)),
        *("--replay.load", rows, "--offline-steps", str(offline)),
    ]


def test_nothing_acts_before_the_offline_updates_are_made_and_none_is_owed_for_them(tmp_path, rows):
    run = start(tmp_path / "run", *words(rows))
    phases = []
    run.begin()
    while not run.is_complete():
        run.turn()
        counts = run.report.counts
        if counts.train_steps < 30:
            assert counts.counters.agent_steps == 0
            phases.append(run.report.phase())
    run.finish()
    run.runtime.close()
    assert phases
    assert all(phase.endswith("/30 updates") for phase in phases)
    alone = start(tmp_path / "alone", *words(rows, offline=0))
    assert alone.run() == "completed"
    assert run.report.counts.train_steps == 30 + alone.report.counts.train_steps
    assert run.report.counts.counters.agent_steps == alone.report.counts.counters.agent_steps
    assert run.report.train_ratio_actual == alone.report.train_ratio_actual


def test_a_run_that_is_killed_in_its_offline_updates_goes_on_exactly(tmp_path, rows):
    more = ["--learner.checkpoint-every-steps", "20"]
    assert start(tmp_path / "whole", *words(rows, 50), *more).run() == "completed"
    broken = start(tmp_path / "broken", *words(rows, 50), *more)
    broken.begin()
    while broken.runtime.learner.train_steps < 40:
        broken.turn()
    broken.runtime.train_due(5)
    broken.runtime.replay.close()  # as death does
    assert newest_state(tmp_path / "broken")["learner"]["train_steps"] == 40
    resumed = start(tmp_path / "broken", *words(rows, 50), *more)
    assert resumed.run() == "completed"
    whole = newest_state(tmp_path / "whole")
    again = newest_state(tmp_path / "broken")
    assert_equal_trees(whole["learner"], again["learner"])
    assert_equal_trees(whole["limiter"], again["limiter"])
    assert payloads(tmp_path / "whole") == payloads(tmp_path / "broken")


def test_what_the_offline_updates_came_to_is_saved_before_anything_acts(
    tmp_path, rows, monkeypatch
):
    monkeypatch.setattr("worldloom_dist.lockstep.runtime.OFFLINE_UPDATES_PER_CHECKPOINT", 20)
    more = ["--learner.checkpoint-every-steps", "100000"]
    run = start(tmp_path / "run", *words(rows, 50), *more)
    saved = []
    real = run.runtime.checkpoint

    def checkpoint():
        counts = run.report.counts
        saved.append((counts.train_steps, counts.counters.agent_steps))
        return real()

    monkeypatch.setattr(run.runtime, "checkpoint", checkpoint)
    assert run.run() == "completed"
    assert saved[:-1] == [(20, 0), (40, 0), (50, 0)]
    broken = start(tmp_path / "broken", *words(rows, 50), *more)
    broken.begin()
    while not broken.report.counts.counters.agent_steps:
        broken.turn()
    broken.runtime.replay.close()  # as death does
    assert newest_state(tmp_path / "broken")["learner"]["train_steps"] == 50
    resumed = start(tmp_path / "broken", *words(rows, 50), *more)
    assert resumed.run() == "completed"
    whole, again = (newest_state(tmp_path / name) for name in ("run", "broken"))
    assert_equal_trees(whole["learner"], again["learner"])


def test_a_stopped_run_says_where_it_is_and_leaves_the_rest_to_the_resumed_one(tmp_path, rows):
    run = start(tmp_path / "run", *words(rows, 5000))
    run.begin()
    run.turn()
    run.runtime.look()
    run.write("running")
    said = read_view(tmp_path / "run").phase
    assert said == f"offline {run.runtime.learner.train_steps:,}/5,000 updates"
    run.stop.set("test")
    status, missing = run.finish()
    run.runtime.close()
    assert (status, missing) == ("stopped", None)
    assert run.report.counts.counters.agent_steps == 0
    assert 0 < run.report.counts.train_steps < 5000
    view = read_view(tmp_path / "run")
    assert view.env_steps == 0
    assert view.train_steps == run.report.counts.train_steps
    saved = newest_state(tmp_path / "run")
    assert saved["limiter"]["positions"] == saved["learner"]["replayed_steps"]


def test_what_the_offline_updates_came_to_is_evaluated_before_the_run_goes_on(tmp_path, rows):
    more = ["--eval-every", "1000", "--eval-episodes", "1", "--eval-max-steps", "5"]
    run = start(tmp_path / "run", *words(rows), *more)
    assert run.run() == "completed"
    records = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert [one["env_steps"] for one in records if one["kind"] == "eval"] == [0, 60]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "need rows from files; name them with --replay.load"),
        ({"env": EnvConfig(env="none")}, "all updates are offline, got 10; say how"),
        ({"gateway_port": 7000}, "act whenever they ask, so 10 updates cannot come before; train"),
    ],
)
def test_offline_updates_without_data_or_without_an_env_are_refused(change, sentence):
    config = dataclasses.replace(RunConfig(), offline_steps=10, **change)
    load = dataclasses.replace(config.replay, load="a.npz" if change else None)
    problems = dataclasses.replace(config, replay=load).problems()
    assert any(sentence in problem for problem in problems)


def write_short(path, steps):
    np.savez(
        path,
        obs=np.zeros((steps, 3), np.float32),
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps, np.float32),
        dones=np.arange(steps) == steps - 1,
    )
    return str(path)


def test_files_that_fill_no_window_are_refused_before_anything_starts(tmp_path):
    flags = words(write_short(tmp_path / "short.npz", 6), offline=10)
    with pytest.raises(ConfigurationError, match=r"offline_steps: .* hold no \d+ consecutive rows"):
        resolve(parse(["--runtime", "local", "--agent.horizon", "8", *flags]))


def test_rows_of_several_files_are_not_consecutive(tmp_path):
    files = [write_short(tmp_path / f"{name}.npz", 40) for name in "ab"]
    dreamer = ["--agent", "dreamerv3:ci", "--agent.batch-length", "64"]
    flags = [*words(",".join(files), offline=10), *dreamer]
    with pytest.raises(ConfigurationError, match=r"offline_steps: .* hold no 6\d consecutive rows"):
        resolve(parse(["--runtime", "local", *flags]))
    flags = [*words(write_short(tmp_path / "c.npz", 80), offline=10), *dreamer]
    assert resolve(parse(["--runtime", "local", *flags])).config.offline_steps == 10


def test_a_resumed_run_has_the_offline_updates_that_it_was_begun_with():
    base = RunConfig()
    problems = resume_problems(base, dataclasses.replace(base, offline_steps=10))
    assert problems == [
        "offline_steps: the run was made with 0, not 10; leave the flag out, or start a new run "
        "with --run-dir"
    ]


def test_workers_and_clients_wait_for_the_offline_updates_though_nothing_is_stored(rows):
    plan = resolve(parse(words(rows)))
    coordinator = ReplayCoordinator(plan.limits, window_positions=plan.spec.sampling.length)
    coordinator.join(0, RowCounters(), 0)
    question = StepQuestion(slot=0, incarnation=1, number=1, made=0, in_chunks=0, least=1, most=64)
    assert coordinator.try_make(question, 100) == 0
    assert not coordinator.try_insert(0, 1)
    assert not coordinator.may_make(1, in_hand=0)
    coordinator.limiter.sampled(plan.limits.offline_positions)
    assert coordinator.try_make(question, 100) > 0
    assert coordinator.may_make(1, in_hand=0)
