"""Names of RLlib's registry as environments."""

import pytest
from ray.tune import register_env

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.toy import PointEnv


def test_a_registered_name_is_an_env():
    register_env("point-of-a-test", lambda env_config: PointEnv(**env_config))
    named = env_spec(EnvConfig(env="rllib:point-of-a-test"))
    own = env_spec(EnvConfig(env="toy:point"))
    assert (named.obs, named.action) == (own.obs, own.action)
    vector = make_env(EnvConfig(env="rllib:point-of-a-test"), num_envs=2, seed=1)
    assert vector.num_envs == 2
    vector.close()


def test_a_gymnasium_id_needs_no_registration():
    named = env_spec(EnvConfig(env="rllib:CartPole-v1"))
    own = env_spec(EnvConfig(env="gym:CartPole-v1"))
    assert (named.obs, named.action, named.episode_limit) == (
        own.obs,
        own.action,
        own.episode_limit,
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody-knows", "no one registered"),
        ("CartPole-v7", "CartPole-v1"),
        ("no-env", "no single-agent"),
    ],
)
def test_what_is_no_env_is_one_sentence(name, says):
    register_env("no-env", lambda env_config: object())
    with pytest.raises(ConfigurationError, match=says):
        env_spec(EnvConfig(env=f"rllib:{name}"))
