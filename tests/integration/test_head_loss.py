"""A run on a cluster whose head is lost: said in one sentence within half a minute, nothing is left
behind, and it goes on with a new head.
"""

import shutil
import signal
import time

import pytest

from tests.integration.head_node import head_node, redis_server
from tests.integration.running import PATIENCE, launched

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(600 * PATIENCE),
]
WORDS = (
    "--preset debug --env toy:counting --workers 1 --train-ratio 2 --eval-episodes 0 "
    "--metrics-port 0 --inference local"
).split()
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def begun(folder, head):
    words = [*WORDS, "--env-steps", "10000000", "--run-dir", str(folder)]
    return launched(folder, *words, "--address", head.address, env=ENVIRONMENT)


def check_failed(run):
    """How a run ends that lost its head."""
    began = time.monotonic()
    assert run.finish(60) == 1, run.output.read_text()
    assert time.monotonic() - began < 30 * PATIENCE
    summary = run.summary()
    assert summary["status"] == "failed"
    assert "head" in summary["error"]
    assert "--resume" in summary["error"]
    text = run.output.read_text()
    assert "Traceback" not in text
    assert text.count("the run failed: ") == 1
    return summary


def check_goes_on(folder, head, before):
    words = ["--resume", str(folder), "--env-steps", str(before["env_steps"] + 300)]
    with launched(folder, *words, "--address", head.address, env=ENVIRONMENT) as run:
        assert run.finish(200) == 0, run.output.read_text()
        after = run.summary()
    assert after["status"] == "completed"
    assert after["rows"]["lost_acked"] == 0
    assert after["rows"]["inserted"] >= before["rows"]["inserted"]


@pytest.mark.parametrize("servers", [("gcs_server",), ()], ids=["gcs", "all"])
def test_without_fault_tolerance_the_run_fails_and_goes_on_with_a_new_head(tmp_path, servers):
    folder = tmp_path / "run"
    with head_node() as head, begun(folder, head) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 200)
        head.kill(*servers)
        before = check_failed(run)
        assert run.leftovers() == []
    with head_node() as head:
        check_goes_on(folder, head, before)


@pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="needs apt-get install redis-server"
)
def test_with_redis_a_run_goes_on_over_a_gcs_that_comes_back(tmp_path):
    folder = tmp_path / "run"
    with redis_server() as redis, head_node(redis) as head:
        with begun(folder, head) as run:
            run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 200)
            head.restart_gcs(down_s=3.0)
            before = run.journal_bytes()
            run.wait_until(lambda: run.journal_bytes() > before + 2000, 100)
            run.process.send_signal(signal.SIGINT)
            assert run.finish() == 0, run.output.read_text()
            stopped = run.summary()
            assert "Traceback" not in run.output.read_text()
        assert stopped["status"] == "stopped"
        assert stopped["rows"]["lost_acked"] == 0
        check_goes_on(folder, head, stopped)
