"""Workers wait for the updates that come before the first env step."""

import threading

from tests.worldloom_dist.local_runs import write_pendulum_rows
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime.worker_role import wait_for_weights


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
