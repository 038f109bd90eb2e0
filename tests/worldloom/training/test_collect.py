import dataclasses
import re

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import ActOutput
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import make_env
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
