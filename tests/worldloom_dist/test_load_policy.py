"""A trained policy leaves its run: it plays where it was trained, and its episodes are training
data.
"""

from pathlib import Path

import pytest
import torch

from tests.worldloom_dist.small_runs import start
from worldloom.core.exceptions import ConfigurationError
from worldloom.training.collect import collect_buffer
from worldloom_dist.evaluate import load_policy


def test_the_policy_of_a_run_records_episodes_of_its_own_env(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert start(tmp_path / "run", "--env-steps", "100").run() == "completed"
    torch.set_num_threads(before)
    env, policy = load_policy(tmp_path / "run")
    played = collect_buffer(env, 2, policy=policy, max_steps=5)
    assert (played.num_episodes, len(played)) == (2, 10)
    actions = played.sample(2, 5)["actions"]
    assert actions.abs().max() <= 1
    assert actions.std() > 0
    with pytest.raises(ConfigurationError, match="holds no run"):
        load_policy(tmp_path)
