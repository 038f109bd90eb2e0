"""The second Ctrl-C, live."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.running import PATIENCE, launched

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300 * PATIENCE)]


def test_second_ctrl_c_leaves_at_once_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [
        "--preset",
        "debug",
        "--env-steps",
        "1000000",
        "--eval-episodes",
        "0",
        "--metrics-port",
        "0",
        "--run-dir",
        str(folder),
    ]
    with launched(folder, *words) as run:
        run.wait_until(
            lambda: list(folder.glob("checkpoints/*")) and run.summary().get("train_steps", 0) > 0,
            120,
        )
        run.process.send_signal(signal.SIGINT)
        run.wait_until(lambda: "stopping: Ctrl-C" in run.output.read_text())
        run.process.send_signal(signal.SIGINT)
        status = run.finish(60)
        output = run.output.read_text()
        assert run.leftovers() == []
    assert status == 1, output
    assert "left at once; the last checkpoint is kept" in output
    assert run.summary()["status"] == "stopped"
    assert run.summary()["error"] == "left at once"


def test_too_few_workers_end_the_run_with_the_reason_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mortal.py").write_text(
        "import os, worldloom.envs.toy\n"
        "class Mortal(worldloom.envs.toy.CountingEnv):\n"
        "    lived = 0\n"
        "    def step(self, action):\n"
        "        Mortal.lived += 1\n"
        "        if Mortal.lived > 400: os._exit(5)\n"
        "        return super().step(action)\n"
    )
    folder = tmp_path / "run"
    words = [
        "--preset",
        "debug",
        "--env",
        "mortal:Mortal",
        "--workers",
        "2",
        "--inference",
        "central",
        "--run-dir",
        str(folder),
    ]
    words += [
        "--actors.max-restarts",
        "1",
        "--actors.min-live",
        "2",
        "--eval-episodes",
        "0",
        "--env-steps",
        "1000000",
    ]
    with launched(
        folder,
        *words,
        "--metrics-port",
        "0",
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    ) as run:
        status = run.finish(240)
        output = run.output.read_text()
        assert run.leftovers() == []
    assert status == 1, output
    summary = run.summary()
    assert summary.get("status") == "failed", output
    assert "of 2 env workers are left, and actors.min_live is 2" in summary["error"]
    assert summary["quarantined"]
    assert summary["quarantined"].keys() <= {"worker-0", "worker-1"}
    assert all("its process died" in why for why in summary["quarantined"].values())
    assert list(folder.glob("checkpoints/*")), "a checkpoint was saved"
