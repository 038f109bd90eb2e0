"""Jobs of a real Slurm: at its time limit, or when it is warned, a run is requeued and goes on to
its end; cancelled, it leaves a checkpoint.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import run, slurm, state_of, why_not
from tests.worldloom_dist.tiny_runs import TINY

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
ROOT = Path(__file__).parents[2]
LOCAL = [*TINY["tdmpc2:ci"], "--metrics-port", "0"]
RAY = "--preset debug --env toy:point --metrics-port 0 --eval-episodes 0".split()
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PYTHONPATH": str(ROOT)}


class Job:
    def __init__(self, cluster, folder, words, flags):
        command = [sys.executable, "-m", "worldloom_dist.submit", "--slurm", *words]
        done = subprocess.run(
            [*command, "--working-dir", str(folder), "--", *flags],
            env=cluster,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert not done.returncode, done.stderr
        self._cluster = cluster
        self._folder = folder
        self.id = done.stdout.strip()

    @property
    def state(self):
        return state_of(self._cluster, self.id)

    @property
    def log(self):
        return "".join(path.read_text() for path in (self._folder / "runs").glob("*.log"))

    @property
    def summary(self):
        (path,) = (self._folder / "runs").glob("*/summary.json")
        return json.loads(path.read_text())

    def wait(self, condition, timeout_s=240.0):
        give_up = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up, f"{self.state}\n{self.log[-4000:]}"
            time.sleep(0.3)

    def wait_for_end(self):
        self.wait(lambda: self.state.get("JobState") in OVER)

    def cancel(self, *words):
        run(self._cluster, "scancel", *words, self.id)


def test_a_job_at_its_time_limit_is_requeued_and_completes(cluster, tmp_path):
    words = ["--slurm.cpus", "1", "--slurm.time", "1", "--slurm.warn-s", "30"]
    job = Job(cluster, tmp_path, words, [*LOCAL, "--env-steps", "12000"])
    job.wait(lambda: "stopping: SIGUSR1" in job.log)
    job.wait_for_end()
    state = job.state
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0")
    assert int(state["Restarts"]) >= 1
    assert "the time is over: requeueing" in job.log
    assert "(resumed)" in job.log
    assert (job.summary["status"], job.summary["env_steps"] >= 12000) == ("completed", True)


def test_a_job_on_a_symmetric_ray_is_warned_requeued_and_completes(cluster, tmp_path):
    ray = tmp_path / "bin/ray"
    ray.parent.mkdir()
    ray.write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
    ray.chmod(0o755)
    words = ["--slurm.symmetric", "--slurm.cpus", "4"]
    words += ["--slurm.setup", f"export PATH={ray.parent}:$PATH PYTHONPATH={ROOT}"]
    job = Job(cluster, tmp_path, words, [*RAY, "--env-steps", "1500"])
    job.wait(lambda: "| replay 1" in job.log or "| replay 2" in job.log)
    job.cancel("--batch", "--signal=USR1")
    job.wait(lambda: "the time is over: requeueing" in job.log)
    job.wait_for_end()
    assert job.state["JobState"] == "COMPLETED"
    assert job.state["Restarts"] == "1"
    assert job.summary["status"] == "completed"
    assert job.summary["rows"]["lost_acked"] == job.summary["rows"]["lost_open"] == 0


@pytest.mark.parametrize("words", [(), ("--batch", "--signal=TERM")], ids=["plainly", "batch"])
@pytest.mark.parametrize(
    ("cpus", "flags"), [("1", LOCAL), ("4", RAY)], ids=["local", "its own ray"]
)
def test_a_job_that_is_cancelled_leaves_a_checkpoint(cluster, tmp_path, words, cpus, flags):
    job = Job(cluster, tmp_path, ["--slurm.cpus", cpus], [*flags, "--env-steps", "100000"])
    job.wait(lambda: "updates/step" in job.log)
    job.cancel(*words)
    job.wait_for_end()
    job.wait(lambda: job.summary["status"] != "running")
    assert job.summary["status"] == "stopped"
    assert job.state["Restarts"] == "0"
    assert job.summary["train_steps"] > 0


def test_nothing_is_left_of_a_slurm(tmp_path):
    with slurm(tmp_path) as environment:
        assert environment
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=30)
    assert str(tmp_path) not in found.stdout
    assert os.path.exists(tmp_path / "slurmctld.log")
