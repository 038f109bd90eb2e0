"""What a run of the lock-step runtime does when its envs fail for good."""

import errno
import itertools
import json
import logging
import re
from functools import partial

import pytest
import torch

from tests.integration.running import check_counting, read_journals, rows_of
from tests.worldloom_dist.local_runs import newest_state
from tests.worldloom_dist.mortal_envs import MortalEnv
from tests.worldloom_dist.small_runs import COUNTING, start
from worldloom.core.exceptions import CheckpointError, EnvFailureError, TrainingError
from worldloom.core.memory import MemoryBound
from worldloom.core.specs import EnvSpec
from worldloom.envs.memory import MemoryWatch
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.learner.step import CaptureFailedError
from worldloom_dist.lockstep import runtime as runtime_module
from worldloom_dist.replay.shard import ReplayShard

WORDS = ["--env", "tests.worldloom_dist.mortal_envs:MortalEnv", "--actors.max-env-failures", "2"]
BROKEN = re.compile(r"raised: RuntimeError: broken on purpose \(.*/mortal_envs.py:\d+\)")


@pytest.fixture(autouse=True)
def _one_thread_and_healthy_envs(monkeypatch):
    monkeypatch.setattr(MortalEnv, "healthy", 1_000_000)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def check_rows(folder) -> dict:
    """Every stored row is right (a broken episode is cut short); returns the number of decisions by
    slot.
    """
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = {}
    for stream, chunks in read_journals(folder).items():
        rows = rows_of(chunks, env)
        starts = [
            *(
                t
                for t in range(len(rows["reward"]))
                if rows["is_first"][t] and rows["obs"][t, 0] == 0
            ),
            len(rows["reward"]),
        ]
        incarnations = [
            {name: value[a:b] for name, value in rows.items()}
            for a, b in itertools.pairwise(starts)
        ]
        decisions[stream.slot] = sum(check_counting(rows) for rows in incarnations)
    return decisions


def test_worker_without_envs_is_left_out_and_named_and_the_run_completes(tmp_path, caplog):
    folder = tmp_path / "run"
    run = start(folder, *WORDS, "--workers", "2", "--env-steps", "180")
    MortalEnv.healthy = 1
    with caplog.at_level(logging.WARNING):
        assert run.run() == "completed"
    summary = summary_of(folder)
    of_worker, of_env = (summary["quarantined"][name] for name in ("worker-1", "worker-1/env-0"))
    assert len(summary["quarantined"]) == 2
    assert BROKEN.fullmatch(of_env)
    assert of_worker == f"no env is left of 1; the last failure: env 0 {of_env}"
    assert (
        "worker-1 is given up: no env is left of 1; the last failure: env 0 raised" in caplog.text
    )
    assert summary["restarts"]["env"] == 2, "each failure of it"
    decisions = check_rows(folder)
    assert sum(decisions.values()) == summary["agent_steps"] >= 180
    assert decisions[1] == 2 * MortalEnv.STEPS, "both incarnations of its env are stored"
    MortalEnv.healthy = 1_000_000
    resumed = start(folder, *WORDS, "--workers", "2", "--env-steps", "240")
    assert resumed.run() == "completed"
    assert summary_of(folder)["quarantined"] == {}, "a resumed run tries it again"
    decisions = check_rows(folder)
    assert sum(decisions.values()) == summary_of(folder)["agent_steps"] >= 240
    assert decisions[1] > 2 * MortalEnv.STEPS


def test_too_few_workers_end_the_run_with_the_reasons_and_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    run = start(folder, *WORDS, "--workers", "2", "--env-steps", "1000", "--actors.min-live", "2")
    MortalEnv.healthy = 1
    with pytest.raises(
        TrainingError,
        match=r"only 1 of 2 env workers are left, and actors.min_live is 2 \(worker-1: no env",
    ):
        run.run()
    summary = summary_of(folder)
    assert summary["status"] == "failed"
    assert BROKEN.fullmatch(summary["quarantined"]["worker-1/env-0"])
    assert newest_state(folder)["learner"]["train_steps"] == summary["train_steps"] > 0


def test_run_that_fails_in_an_evaluation_has_saved_what_it_trained(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    words = [
        *WORDS,
        "--eval-every",
        "100",
        "--eval-episodes",
        "2",
        "--learner.checkpoint-every-steps",
        "10000",
    ]
    run = start(folder, *words, "--workers", "1", "--env-steps", "180")
    MortalEnv.healthy = 1
    monkeypatch.setattr(MortalEnv, "STEPS", 0)
    with pytest.raises(EnvFailureError, match="no env is left of 2"):
        run.run()
    summary = summary_of(folder)
    assert summary["status"] == "failed"
    assert 100 <= summary["env_steps"] < 180
    assert newest_state(folder)["learner"]["train_steps"] == summary["train_steps"] > 0
    assert not (folder / "checkpoints" / "best").exists(), "nothing is known of how good it is"
    MortalEnv.healthy = 1_000_000
    assert start(folder, *words, "--workers", "1", "--env-steps", "180").run() == "completed"
    assert len(CheckpointStore(folder / "checkpoints").folders()) == 2


def test_after_a_capture_that_failed_the_run_goes_on_eagerly_and_its_summary_says_why(
    tmp_path, caplog
):
    folder = tmp_path / "run"
    words = ["--env", "toy:counting", "--env-steps", "180"]
    run = start(folder, *words)
    update = run.runtime.learner.step

    def cannot_be_captured(batch):
        if run.runtime.learner.train_steps == 3:
            raise CaptureFailedError("an update could not be captured (for a test)")
        return update(batch)

    run.runtime.learner.step = cannot_be_captured
    with pytest.raises(TrainingError, match=rf"\(for a test\).*--resume {folder}"):
        run.run()
    why = "an update could not be captured (for a test)"
    assert summary_of(folder)["eager"] == why
    with caplog.at_level(logging.WARNING):
        assert start(folder, *words, "--learner.compile", "graph").run() == "completed"
    assert summary_of(folder)["eager"] == why
    assert f"learner.compile is off, because a learner of the run failed: {why}" in caplog.text


def test_a_process_whose_envs_took_all_memory_leaves_with_a_checkpoint(tmp_path, monkeypatch):
    tight = [MemoryBound("container", 100_000_000, 1_000_000)]
    watch = partial(MemoryWatch, bounds=lambda: tight, sleep=lambda _: None)
    monkeypatch.setattr(runtime_module, "MemoryWatch", watch)
    monkeypatch.setattr(runtime_module, "LOOK_EVERY_S", 0.0)
    run = start(tmp_path / "run", *COUNTING, "--env-steps", "300")
    with pytest.raises(TrainingError, match=r"held .* GB of memory, and of the container's 0.1 GB"):
        run.run()
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "failed"
    assert "--resume" in summary["error"]
    tight[0] = MemoryBound("machine", 100 * 10**9, 90 * 10**9)
    assert start(tmp_path / "run", "--resume", str(tmp_path / "run")).run() == "completed"


def test_snapshots_that_fail_leave_those_of_the_last_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    words = ["--replay.shards", "2", "--workers", "2", "--learner.keep-checkpoints", "1"]
    words += ["--learner.checkpoint-every-steps", "100", "--env-steps", "400"]
    run = start(folder, *words)
    snapshot = ReplayShard.snapshot

    def full_disk(shard):
        if shard.index == 1 and (folder / "checkpoints").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return snapshot(shard)

    with monkeypatch.context() as full:
        full.setattr(ReplayShard, "snapshot", full_disk)
        with pytest.raises(CheckpointError, match="No space left on device"):
            run.run()
    assert summary_of(folder)["status"] == "failed"
    assert start(folder, *words).run() == "completed"
