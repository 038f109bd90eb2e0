import re
from typing import Any

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig, EnvLimits


@pytest.mark.parametrize(
    ("text", "suite", "name"),
    [
        ("Pendulum-v1", "gym", "Pendulum-v1"),
        ("gym:Pendulum-v1", "gym", "Pendulum-v1"),
        ("gym:ALE/Pong-v5", "gym", "ALE/Pong-v5"),
        ("atari:pong", "atari", "pong"),
        ("dmc:walker-walk", "dmc", "walker-walk"),
        ("mujoco:half-cheetah", "mujoco", "half-cheetah"),
        ("toy:counting", "toy", "counting"),
        ("my.package:make_env", "module", "my.package:make_env"),
        ("none", "none", ""),
    ],
)
def test_env_text_names_a_suite_and_an_env(text: str, suite: str, name: str) -> None:
    config = EnvConfig(env=text)
    assert (config.suite, config.name) == (suite, name)
    assert config.is_none == (text == "none")


def test_misspelt_suite_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigurationError, match="no suite 'gmy'; did you mean gym"):
        EnvConfig(env="gmy:Pendulum-v1")


def test_every_wrong_field_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        EnvConfig(env="gym:Pendulum-v1", action_repeat=0, time_limit=-3, sticky=1.5, camera=2)
    for part in (
        "env.action_repeat must be >= 1, got 0",
        "env.time_limit",
        "env.sticky must be",
        "atari only",
        "dmc only",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("env", ["toy:point", "my.package:make_env", "rllib:Name"])
def test_pixels_are_refused_where_nothing_renders_them(env: str) -> None:
    assert not EnvConfig(env=env).resolved().pixels
    with pytest.raises(
        ConfigurationError, match="env.pixels is for gym, mujoco, dmc only, and the env is '" + env
    ):
        EnvConfig(env=env, pixels=True)


def test_flags_win_over_agent_defaults_which_win_over_the_suite() -> None:
    flags = EnvConfig(env="atari:pong", sticky=0.1)
    config = flags.with_defaults(
        {"atari": {"sticky": 0.0, "image_size": 64}, "dmc": {"action_repeat": 2}}
    ).resolved()
    assert (config.sticky, config.image_size, config.action_repeat, config.time_limit) == (
        0.1,
        64,
        4,
        27_000,
    )


def test_settings_survive_the_checkpoint() -> None:
    config = EnvConfig(env="dmc:walker-walk", pixels=True, action_repeat=2).resolved()
    assert EnvConfig.from_settings(config.env, config.settings()) == config
    with pytest.raises(ConfigurationError, match="did you mean action_repeat"):
        EnvConfig.from_settings("gym:Pendulum-v1", {"action_repet": 2})


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="step_timeout_s must be > 0, got 0"):
        EnvLimits(step_timeout_s=0)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("action_repeat", 2.5, "env.action_repeat must be None or an integer"),
        ("time_limit", "two hundred", "env.time_limit must be None or an integer"),
        ("pixels", "perhaps", "env.pixels must be"),
        ("sticky", float("nan"), "env.sticky must be"),
        ("env", 3, "env.env must be"),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: object, sentence: str) -> None:
    settings: dict[str, Any] = {"env": "atari:pong", field: value}
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        EnvConfig(**settings)


def test_a_field_that_means_a_plain_value_holds_it() -> None:
    made = EnvConfig(env="gym:Pendulum-v1", time_limit=np.int64(20), action_repeat=np.int32(2))
    assert (type(made.time_limit), type(made.action_repeat)) == (int, int)
