import dataclasses
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.worldloom.envs import faulty_envs
from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.protocol import ActOutput
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import make_env
from worldloom.envs.gym_vector import GymVectorAdapter
from worldloom.envs.local import LocalVectorEnv
from worldloom.envs.toy import CountingEnv
from worldloom.envs.wrappers import EnvAdapter, RawEnv
from worldloom.training.collect import collect_buffer, collect_episodes


def test_recorded_episodes_lose_and_shift_nothing() -> None:
    env = make_env(EnvConfig(env="toy:counting"), seed=0)
    played = list(collect_episodes(env, 4, policy=lambda obs: np.array([obs[1] / 10, 0.0])))
    env.close()
    assert [len(e["rewards"]) for e in played] == [5, 1, 3, 8]
    for number, episode in enumerate(played):
        steps = np.arange(len(episode["rewards"]))
        assert episode["obs"][:, 1].tolist() == steps.tolist()
        assert episode["rewards"].tolist() == (steps + 1).tolist()
        assert episode["final_obs"][1] == len(steps)
        assert np.allclose(episode["final_obs"][2], episode["actions"][-1, 0])
        assert episode["dones"].tolist() == (steps == steps[-1]).tolist()
        assert bool(episode["truncated"][-1]) == (number % 2 == 1)


def test_a_long_episode_is_cut_as_a_truncation_and_discrete_actions_become_codes() -> None:
    buffer = collect_buffer(EnvConfig(env="CartPole-v1"), 2, max_steps=3)
    assert (len(buffer), buffer.action_dim, buffer.obs_shape) == (6, 2, (4,))
    batch = buffer.sample(4, 3)
    assert (batch["continues"] == 1).all()
    assert (batch["actions"].sum(-1) == 1).all()


def test_several_observation_keys_are_refused() -> None:
    env = make_env(EnvConfig(env="toy:counting"), seed=0)
    env.spec = dataclasses.replace(
        env.spec, obs={"a": env.spec.obs["obs"], "b": env.spec.obs["obs"]}
    )
    with pytest.raises(ConfigurationError, match="one observation"):
        next(iter(collect_episodes(env, 1)))
    env.close()


class Follower:
    """An agent that remembers: its action is a tenth of the number of decisions since the episode
    began.
    """

    def initial_carry(self, num_envs: int) -> dict[str, np.ndarray]:
        return {"count": np.zeros(num_envs)}

    def act(
        self,
        obs: dict[str, np.ndarray],
        carry: dict[str, np.ndarray],
        is_first: np.ndarray,
        *,
        explore: bool,
    ) -> ActOutput:
        assert explore
        count = np.where(is_first, 0.0, carry["count"])
        assert obs["obs"][:, 1].tolist() == count.tolist()
        action = np.stack([count / 10, np.zeros(len(count))], 1).astype(np.float32)
        return ActOutput({"action": action}, {"count": count + 1})

    def load_weights(self, snapshot: object) -> None: ...

    def rng_state(self) -> dict[str, object]:
        return {}

    def load_rng_state(self, state: object) -> None: ...


def test_a_trained_policy_plays_with_its_memory_reset_at_every_episode() -> None:
    env = make_env(EnvConfig(env="toy:counting"), seed=0)
    played = list(collect_episodes(env, 3, policy=Follower()))  # type: ignore[arg-type]
    env.close()
    for episode in played:
        assert np.allclose(episode["actions"][:, 0], np.arange(len(episode["rewards"])) / 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episodes": 0}, "episodes must be an integer >= 1, got 0"),
        ({"episodes": 1.5}, "episodes must be an integer >= 1, got 1.5"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"policy": lambda obs: 0.7}, "policy must return a whole number of shape"),
        ({"policy": lambda obs: [0, 1]}, "policy must return a whole number of shape"),
        ({"policy": lambda obs: None}, "policy must return a whole number of shape"),
        ({"policy": lambda obs: np.nan}, "policy must return a whole number of shape"),
    ],
)
def test_wrong_counts_and_actions_are_named(change: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        collect_buffer(EnvConfig(env="CartPole-v1"), **({"episodes": 1, "max_steps": 3} | change))


def rebuilding(make: Any, num_envs: int = 1, **limits: Any) -> LocalVectorEnv:
    """Envs in this process that are built again when they fail."""
    config = EnvConfig(env="toy:counting").resolved()
    bounds = EnvLimits(backoff_s=1e-6, max_backoff_s=1e-6, **limits)
    return LocalVectorEnv(lambda: EnvAdapter(RawEnv(make()), config), num_envs, 0, limits=bounds)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_env_that_fails_cuts_its_episode_and_splices_no_two(
    num_envs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    env = rebuilding(faulty_envs.raises, num_envs)
    played = list(collect_episodes(env, 3, policy=Follower()))  # type: ignore[arg-type]
    env.close()
    assert [len(e["rewards"]) for e in played] == [2, 5, 1]
    for episode in played:
        steps = np.arange(len(episode["rewards"]))
        assert episode["obs"][:, 1].tolist() == steps.tolist()
        assert episode["rewards"].tolist() == (steps + 1).tolist()
        assert episode["final_obs"][1] == len(steps)
        assert np.allclose(episode["actions"][:, 0], steps / 10)
    assert [bool(e["truncated"][-1]) for e in played] == [True, False, True]


def test_an_env_that_fails_at_once_leaves_no_empty_episode() -> None:
    failures = iter([True, True])

    class Failing(CountingEnv):
        def step(self, action: np.ndarray) -> Any:
            if next(failures, False):
                raise RuntimeError("broken on purpose")
            return super().step(action)

    env = rebuilding(Failing)
    played = list(collect_episodes(env, 2))
    env.close()
    assert [len(e["rewards"]) for e in played] == [5, 1]


def test_an_env_that_always_fails_ends_the_collecting_also_beside_one_that_works() -> None:
    count = iter(range(100))

    class Failing(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self._works = next(count) == 1

        def step(self, action: np.ndarray) -> Any:
            if self._works:
                return super().step(action)
            raise RuntimeError("broken on purpose")

    env = rebuilding(Failing, 2, max_failures=3)
    with pytest.raises(EnvFailureError, match=r"env 0 of .*broken on purpose"):
        list(collect_episodes(env, 2))
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_of_other_envs_alone_are_no_rows(mode: AutoresetMode) -> None:
    class Short(CountingEnv):
        LENGTHS = (2, 1, 2, 1, 2)

    vector = SyncVectorEnv([CountingEnv, Short], autoreset_mode=mode)
    config = EnvConfig(env="toy:counting").resolved()
    env = GymVectorAdapter(vector, config, 2, 0)
    played = list(collect_episodes(env, 4, policy=Follower()))  # type: ignore[arg-type]
    env.close()
    for episode in played:
        steps = np.arange(len(episode["rewards"]))
        number = int(episode["final_obs"][0])
        assert len(steps) == CountingEnv.LENGTHS[number % 5]
        assert set(episode["obs"][:, 0]) == {number}
        assert episode["obs"][:, 1].tolist() == steps.tolist()
        assert np.allclose(episode["actions"][:, 0], steps / 10)


@pytest.mark.parametrize(
    ("actions", "codes"),
    [
        (gymnasium.spaces.Discrete(1), [[1.0]]),
        (gymnasium.spaces.MultiDiscrete([1]), [[1.0]]),
        (gymnasium.spaces.Box(-1, 1, (2, 1)), [[0.5, 0.5]]),
        (gymnasium.spaces.Box(-1, 1, ()), [[0.5]]),
    ],
)
def test_spaces_of_any_rank_are_stored_as_a_model_reads_them(
    actions: Any, codes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, gymnasium.spaces.Box(-1, 1, ()), actions)
    value = 0.5 if isinstance(actions, gymnasium.spaces.Box) else 0
    buffer = collect_buffer(EnvConfig(env="toy:counting"), 1, policy=lambda obs: np.array(value))
    assert buffer.obs_shape == (1,)
    (episode,) = buffer.episodes()
    assert episode["actions"].tolist() == codes
    assert episode["obs"].tolist() == [[0.25]]
    assert episode["final_obs"].tolist() == [0.25]


@pytest.mark.parametrize(
    "actions", [gymnasium.spaces.MultiDiscrete([2, 2]), gymnasium.spaces.MultiBinary(2)]
)
def test_several_choices_in_one_action_are_refused_before_anything_is_played(
    actions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = plays(monkeypatch, gymnasium.spaces.Box(-1, 1, (2,)), actions)
    with pytest.raises(ConfigurationError, match="2 discrete components"):
        collect_buffer(EnvConfig(env="toy:counting"), 1)
    assert [env.steps for env in built] == [0]


def plays(monkeypatch: pytest.MonkeyPatch, obs: Any, actions: Any) -> list[Any]:
    """Let every env be one of these spaces that ends after a step; returns those that were made."""
    built = []

    class One(gymnasium.Env[Any, Any]):
        observation_space = obs
        action_space = actions
        steps = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.full(obs.shape, 0.25, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            assert actions.contains(action)
            return np.full(obs.shape, 0.25, np.float32), 1.0, True, False, {}

    def make(config: EnvConfig, *, seed: int) -> LocalVectorEnv:
        built.append(One())
        return LocalVectorEnv(lambda: EnvAdapter(RawEnv(built[-1]), config.resolved()), 1, seed)

    monkeypatch.setattr("worldloom.training.collect.make_env", make)
    return built
