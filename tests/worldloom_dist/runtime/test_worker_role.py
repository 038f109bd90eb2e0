"""Workers wait for the updates that come before the first env step, and say when an env hangs."""

import threading

import pytest

from tests.worldloom_dist.local_runs import write_pendulum_rows
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime.worker_role import overdue, stood_still, wait_for_weights


def test_a_worker_waits_for_weights_that_have_all_offline_updates(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    words = ["--env", "gym:Pendulum-v1", "--agent", "dreamerv3:ci", "--agent.batch-length", "8"]
    plan = resolve(parse([*words, "--replay.load", rows, "--offline-steps", "30"]))
    assert not plan.spec.random_prefill, "it publishes weights before its first update"
    versions = [NO_POLICY, PolicyVersion(1, 0), PolicyVersion(1, 29), PolicyVersion(1, 30)]
    asked = []

    class Weights:
        def version(self):
            asked.append(versions[len(asked)])
            return asked[-1]

    wait_for_weights(plan, Weights(), threading.Event(), 0.0)
    assert asked == versions


@pytest.mark.parametrize(
    ("doing", "may_take_s", "says"),
    [
        ("starting", 360.0, "its env was not built within"),
        ("reset", 120.0, "its env did not return from reset for"),
        ("step", 60.0, "its env did not return from step for"),
        ("closing", 360.0, "its env did not return from closing for"),
    ],
)
def test_whatever_a_worker_waits_for_an_env_with_has_an_end(doing, may_take_s, says):
    config = parse(["--env", "gym:Pendulum-v1", "--envs-per-worker", "2"])
    assert overdue(config, doing, may_take_s) == ""
    assert overdue(config, doing, may_take_s + 1.0).startswith(says)


@pytest.mark.parametrize(
    ("workers", "silence_s", "is_so"),
    [(1, 3600.0, True), (1, 15.0, False), (1000, 70.0, False), (1000, 3600.0, True)],
)
def test_a_worker_that_was_stopped_takes_its_env_for_no_hang(workers, silence_s, is_so):
    assert stood_still(silence_s, workers) == is_so
