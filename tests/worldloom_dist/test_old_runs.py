"""Run folders of release 0.2.0 are whole, evaluate to the numbers that they had then, and go on.

``tests/data/runs-0.2.0.tar.gz`` was made by the code of commit 7c5657d: the quick preset's kind of
run on Pendulum-v1 with episodes of 40 steps, by TD-MPC2 with ``--runtime local`` and on Ray, and by
DreamerV3, each of 150 env steps.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from worldloom_dist.evaluate import evaluate
from worldloom_dist.launch import main
from worldloom_dist.replay.__main__ import main as replay_main

ARCHIVE = Path(__file__).parents[1] / "data/runs-0.2.0.tar.gz"
RETURNS = {
    "local-tdmpc2": [-0.6710588715504855, -301.294828414917],
    "ray-tdmpc2": [-1.4497605067444965, -245.84513080120087],
    "local-dreamerv3": [-138.12112051201984, -269.8767328262329],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RETURNS)
def test_an_old_run_is_whole_and_evaluates_to_the_same_number(runs, name):
    assert replay_main(["verify", str(runs / name)]) == 0
    assert evaluate(runs / name, episodes=2)["returns"] == pytest.approx(RETURNS[name], rel=1e-3)


@pytest.mark.parametrize("name", ["local-tdmpc2", "local-dreamerv3"])
def test_an_old_run_goes_on(runs, name):
    before = json.loads((runs / name / "summary.json").read_text())
    assert main(["--resume", str(runs / name), "--env-steps", "190", "--eval-episodes", "0"]) == 0
    after = json.loads((runs / name / "summary.json").read_text())
    assert after["env_steps"] >= 190 > before["env_steps"]
    assert after["train_steps"] > before["train_steps"]
    assert after["rows"]["inserted"] > before["rows"]["inserted"]
    assert replay_main(["verify", str(runs / name)]) == 0
