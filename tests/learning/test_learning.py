"""What the shipped presets learn from scratch. The seeds' spread is in
benchmarks/results/quick_seeds.json.

The short claim runs in ``make test``; the others belong to ``make test-long``.
"""

import json
import statistics

import pytest

from tests.integration.running import launched

pytestmark = pytest.mark.learn
RANDOM_PENDULUM = -1200.0


def train(folder, words: str, timeout_s: float) -> list[float]:
    """Train through the command line; returns the returns of the last evaluation."""
    with launched(folder, *words.split(), "--run-dir", str(folder)) as run:
        assert run.finish(timeout_s) == 0, run.output.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    return summary["eval"]["returns"]


@pytest.mark.timeout(600)
def test_tdmpc2_ci_learns_pendulum_within_3000_steps(tmp_path):
    words = (
        "--preset quick --runtime local --env-steps 3000 --eval-every 0 --eval-episodes "
        "20 --learner.threads 1"
    )
    returns = train(tmp_path / "run", words, 580)
    assert len(returns) == 20
    assert statistics.median(returns) >= -300, (
        f"a random policy has about {RANDOM_PENDULUM}; got {returns}"
    )


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_quick_preset_solves_pendulum_through_ray(tmp_path):
    returns = train(tmp_path / "run", "--preset quick --metrics-port 0", 1100)
    assert statistics.median(returns) >= -180, returns
    assert sum(value >= -400 for value in returns) >= 16, returns


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("env", "least"), [("Pendulum-v1", -200), ("CartPole-v1", 400)])
def test_mlp_small_learns_classic_control_within_4000_steps(env, least, tmp_path):
    words = (
        f"--env gym:{env} --agent mlp:small --runtime local --env-steps 4000 --eval-every 0 "
        "--eval-episodes 20 --learner.threads 1"
    )
    returns = train(tmp_path / "run", words, 1100)
    assert len(returns) == 20
    assert statistics.median(returns) >= least, returns


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_dreamerv3_ci_balances_the_pole_within_2000_steps(tmp_path):
    words = (
        "--preset quick --runtime local --env gym:CartPole-v1 --agent dreamerv3:ci "
        "--env-steps 2000 --eval-every 0"
    )
    returns = train(tmp_path / "run", words + " --eval-episodes 20 --learner.threads 1", 2300)
    assert statistics.mean(returns) >= 400, returns


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("agent", ["dreamerv3:ci", "r2dreamer:ci"])
def test_the_pixel_toy_is_solved_by_sight_within_4000_steps(agent, tmp_path):
    words = (
        f"--preset quick --runtime local --env toy:pixel --agent {agent} "
        "--agent.batch-length 8 --agent.lr 1e-3"
    )
    words += (
        " --agent.entropy-scale 0.03 --train-ratio 32 --env-steps 4000 --eval-every 0 "
        "--eval-episodes 20 --learner.threads 1"
    )
    returns = train(tmp_path / "run", words, 2300)
    assert statistics.mean(returns) >= 12, (
        f"the shortest way has about 17, one that does not look 0; got {returns}"
    )


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_tdmpc2_ci_learns_two_tasks_that_look_alike_and_want_the_opposite(tmp_path):
    words = (
        "--preset quick --runtime local --env toy:point,toy:mirror --agent tdmpc2:ci --workers 2 "
        "--env-steps 2000 --eval-every 0 --eval-episodes 10 --learner.threads 1"
    )
    train(tmp_path / "run", words, 2300)
    tasks = json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["tasks"]
    means = {name: part["return_mean"] for name, part in tasks.items()}
    assert min(means.values()) >= 22, (
        f"straight to the goal has about 32, a random policy 8; one that does not tell the tasks "
        f"apart is good at one of them at most; got {means}"
    )
