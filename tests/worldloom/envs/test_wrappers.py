"""What the adapter does around one env: copies, remarks, repeats, grey stacks."""

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.worldloom.envs.odd_envs import Base, InPlace, Picture, observing, stacked
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, StateError
from worldloom.envs import contract
from worldloom.envs.config import EnvConfig
from worldloom.envs.wrappers import EnvAdapter, RawEnv, own_repeat


@pytest.fixture(autouse=True)
def _say_everything() -> None:
    contract.say_once.cache_clear()


def adapted(env: Any, **settings: Any) -> EnvAdapter:
    return EnvAdapter(RawEnv(env), EnvConfig(env="my.module:make", **settings).resolved())


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_every_repeat_gets_the_action_that_was_chosen(repeat: int) -> None:
    env = adapted(InPlace(), action_repeat=repeat)
    env.reset(0)
    action = {"action": np.float32([0.5, 0.25])}
    assert env.step(action)[1] == 1.0 * repeat
    assert action["action"].tolist() == [0.5, 0.25]


def test_rewards_of_a_decision_must_fit_together() -> None:
    class Rich(Base):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, 3e38, *rest

    env = adapted(Rich(), action_repeat=2)
    env.reset(0)
    with pytest.raises(EnvFailureError, match=r"reward 6e\+38 is not finite in float32"):
        env.step({"action": np.zeros(2, np.float32)})


def test_what_is_not_read_as_an_image_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    floats = observing(spaces.Box(0, 1, (64, 64, 3)), lambda t: np.zeros((64, 64, 3)))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            adapted(floats())
    remark = (
        "env 'my.module:make': observation 'obs' may be an image of floats, and dense "
        "layers read its 12288 numbers"
    )
    assert caplog.text.count(remark) == 1


def test_frames_that_are_stacked_by_the_env_are_stacked_as_ours_are() -> None:
    ours = adapted(Picture(), frame_stack=4)
    theirs = adapted(stacked())
    assert ours.spec.obs == theirs.spec.obs
    action = {"action": np.zeros(2, np.float32)}
    assert np.array_equal(ours.reset(0)["obs"], theirs.reset(0)["obs"])
    for _ in range(6):
        assert np.array_equal(ours.step(action)[0]["obs"], theirs.step(action)[0]["obs"])


def test_stacked_frames_become_grey_one_by_one() -> None:
    ours = adapted(Picture(), frame_stack=4, grayscale=True)
    theirs = adapted(stacked(), grayscale=True)
    assert theirs.spec.obs["obs"].shape == (48, 40, 4)
    action = {"action": np.zeros(2, np.float32)}
    assert np.array_equal(ours.reset(0)["obs"], theirs.reset(0)["obs"])
    for _ in range(6):
        assert np.array_equal(ours.step(action)[0]["obs"], theirs.step(action)[0]["obs"])


def test_grey_needs_colours() -> None:
    opaque = observing(
        spaces.Box(0, 255, (48, 48, 4), np.uint8), lambda t: np.zeros((48, 48, 4), np.uint8)
    )
    with pytest.raises(
        ConfigurationError,
        match=r"env.grayscale needs images of three channels, and image 'obs' .* has 4; leave",
    ):
        adapted(opaque(), grayscale=True)


class Skips(gymnasium.Env):
    """Stands in for the ALE's env, whose name and attribute it has."""

    observation_space = Base.observation_space
    action_space = Base.action_space

    def __init__(self, frameskip: Any) -> None:
        self._frameskip = frameskip


Skips.__name__ = "AtariEnv"


@pytest.mark.parametrize(("frameskip", "own"), [(4, 4), ((2, 5), 5), (1, 1), (None, 1)])
def test_repeats_of_the_env_itself_are_known(frameskip: Any, own: int) -> None:
    assert own_repeat(gymnasium.Wrapper(Skips(frameskip))) == own
    assert own_repeat(Base()) == 1


def test_repeats_of_repeats_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adapted(Skips(4))
        adapted(Skips(1), action_repeat=4)
        assert caplog.text == ""
        adapted(Skips(4), action_repeat=4)
    assert (
        "repeats every action 4 times itself, and env.action_repeat=4 repeats that, "
        "so a decision takes 16 frames" in caplog.text
    )


def test_repeats_of_the_ale_are_known() -> None:
    ale_py = pytest.importorskip("ale_py", reason="needs worldloom-dist[atari]")
    gymnasium.register_envs(ale_py)
    env = gymnasium.make("ALE/Pong-v5", disable_env_checker=True)
    assert own_repeat(env) == 4
    skipping = gymnasium.wrappers.MaxAndSkipObservation(
        gymnasium.make("ALE/Pong-v5", frameskip=1, disable_env_checker=True), 3
    )
    assert own_repeat(skipping) == 3
    env.close()
    skipping.close()


def test_only_both_documented_names_make_an_env_resumable() -> None:
    class Half(Base):
        def worldloom_get_state(self) -> Any:
            return {}

    for kind in (Base, Half):
        env = adapted(kind())
        assert env.get_state() is None
        with pytest.raises(
            StateError, match=r"give it worldloom_get_state\(\) and worldloom_set_state\(state\)"
        ):
            env.set_state({"env": {}, "elapsed": 0, "stacks": {}})
