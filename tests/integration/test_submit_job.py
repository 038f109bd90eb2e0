"""Jobs on a real head with token authentication, submitted as a user does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.integration.heads import TOKEN, Head, ray_head
from tests.integration.running import marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--preset",
    "debug",
    "--env",
    "toy:counting",
    "--eval-episodes",
    "0",
    "--metrics-port",
    "0",
    "--workers",
    "1",
]


@pytest.fixture(scope="module")
def head():
    with ray_head(uuid.uuid4().hex) as running:
        yield running


def submit(head: Head, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**head.environment, "WORLDLOOM_TEST_RUN": "", **changes}
    command = [sys.executable, "-m", "worldloom_dist.submit", "--address", head.url, *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def wait_until(condition, timeout_s: float = 240.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return value


def test_a_job_trains_and_brings_back_its_summary_and_the_token_is_nowhere_in_its_run(head):
    done = submit(head, "--job-id", "first", "--", *FLAGS, "--env-steps", "250")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 250
    assert "completed; everything is in" in done.stderr, "the log came along"
    folder = Path(head.environment["WORLDLOOM_RUNS"]) / "first"
    assert json.loads((folder / "summary.json").read_text()) == summary
    texts = [path for path in folder.rglob("*") if path.is_file()]
    assert len(texts) > 8
    assert not [path for path in texts if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stderr + done.stdout
    commands = Path(head.environment["HOME"]).rglob("job-driver-*.log")
    assert all(TOKEN not in path.read_text() for path in commands)


def test_without_the_token_nothing_is_accepted(head, tmp_path):
    (tmp_path / "wrong").write_text("f" * 64)
    done = submit(head, "--", *FLAGS, RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert done.returncode == 2
    assert "refuses the token" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_job_whose_driver_was_killed_goes_on_with_its_run_when_it_is_submitted_again(head):
    folder = Path(head.environment["WORLDLOOM_RUNS"]) / "second"
    flags = [*FLAGS, "--env-steps", "1000000", "--learner.checkpoint-every-s", "1"]
    assert submit(head, "--job-id", "second", "--no-wait", "--", *flags).returncode == 0

    def summary():
        return (
            json.loads((folder / "summary.json").read_text())
            if (folder / "summary.json").exists()
            else {}
        )

    wait_until(
        lambda: summary().get("train_steps", 0) > 50 and any((folder / "checkpoints").glob("*"))
    )
    before = summary()
    for pid, line in marked(head.mark).items():
        if "worldloom_dist.job" in line.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    done = submit(head, "--follow", "second")
    assert done.returncode == 1, "a lost driver is a failure"
    assert submit(head, "--job-id", "second", "--no-wait", "--", *flags).returncode == 0
    wait_until(lambda: summary()["env_steps"] > before["env_steps"] + 50)
    assert summary()["run_id"] == before["run_id"]
    done = submit(head, "--stop", "second")
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended["status"] == "stopped", "it checkpointed and left"
    assert ended["rows"]["lost_acked"] == 0
    assert ended["policy_version"].startswith("2.")
