"""A short claim: the shipped laptop preset learns Pendulum-v1 from scratch.

The seeds' spread is in benchmarks/results/quick_seeds.json.
"""

import json
import statistics

import pytest

from tests.integration.running import launched

RANDOM_RETURN = -1200.0


@pytest.mark.learn
@pytest.mark.timeout(600)
def test_tdmpc2_ci_learns_pendulum_within_3000_steps(tmp_path):
    folder = tmp_path / "run"
    words = "--preset quick --runtime local --env-steps 3000 --eval-every 0 --eval-episodes 20 --learner.threads 1".split()
    with launched(folder, *words, "--run-dir", str(folder)) as run:
        assert run.finish(580) == 0, run.output.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    returns = summary["eval"]["returns"]
    assert len(returns) == 20
    assert statistics.median(returns) >= -300, f"a random policy has about {RANDOM_RETURN}; got {returns}"
