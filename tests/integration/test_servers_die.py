"""The servers of a run's own Ray die: it is known within seconds, said in one sentence, and nothing
is left.
"""

import os
import signal

import psutil
import pytest

from tests.integration.running import PATIENCE, launched, marked

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(300 * PATIENCE)]


@pytest.mark.long
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_run_whose_server_dies_fails_with_a_sentence(tmp_path, server):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --workers 1 --env-steps 10000000 --train-ratio 2 "
        f"--eval-episodes 0 --metrics-port 0 --run-dir {folder}"
    ).split()
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 120)
        found = [
            pid
            for pid in marked(run.mark)
            if os.path.basename(psutil.Process(pid).cmdline()[0]) == server
        ]
        os.kill(found[0], signal.SIGKILL)
        assert run.finish(40) == 1, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    assert summary["status"] == "failed"
    assert f"{server} (pid {found[0]}) on this machine has died" in summary["error"]
    text = run.output.read_text()
    assert f"the run failed: Ray's {server}" in text
    assert "Traceback" not in text
