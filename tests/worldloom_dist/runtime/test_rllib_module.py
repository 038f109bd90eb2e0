"""RLlib acts with a trained agent exactly as ``load_agent`` does, by the state that it keeps."""

import tarfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

import worldloom
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.runtime.rllib_module import TrainedModule

ARCHIVE = Path(__file__).parents[2] / "data/runs-0.2.0.tar.gz"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def module_of(run: Path, env: Any) -> Any:
    return TrainedModule(
        observation_space=env.observation_space,
        action_space=env.action_space,
        model_config={"path": str(run)},
    )


@pytest.mark.parametrize("name", ["local-dreamerv3", "local-tdmpc2"])
def test_it_acts_as_a_loaded_agent_does(runs: Path, name: str) -> None:
    env = gymnasium.make("Pendulum-v1")
    module, agent = module_of(runs / name, env), worldloom.load_agent(runs / name)
    assert module.is_stateful()
    state = {key: torch.as_tensor(value)[None] for key, value in module.get_initial_state().items()}
    obs, _ = env.reset(seed=3)
    for _ in range(5):
        out = module.forward_inference(
            {Columns.OBS: torch.as_tensor(obs)[None, None], Columns.STATE_IN: state}
        )
        state = out[Columns.STATE_OUT]
        action = out[Columns.ACTIONS][0, 0].numpy()
        assert np.array_equal(action, agent.act(obs))
        obs, *_ = env.step(action)
    env.close()


def test_what_it_cannot_act_in_is_refused(runs: Path) -> None:
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(ConfigurationError, match="observation_space must be that of the env"):
        module_of(runs / "local-tdmpc2", env)
    with pytest.raises(ConfigurationError, match="model_config must name the agent's path"):
        TrainedModule(observation_space=None, action_space=None, model_config={})
    env.close()


def test_rllib_s_env_runner_plays_with_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
    gymnasium.register(
        "Short-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=6
    )
    try:
        import rllib_evaluate

        returns = rllib_evaluate.play(str(runs / "local-tdmpc2"), "Short-v0", episodes=3, envs=2)
    finally:
        del gymnasium.registry["Short-v0"]
    assert len(returns) == 3
    assert all(-200 < value < 0 for value in returns)
