import decimal
import fractions
import logging
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.envs.contract import (
    Resetter,
    may_terminate,
    opened_step,
    own_limit,
    say_once,
    to_flag,
    to_reward,
)
from worldloom.envs.toy import PointEnv


class Tensor:
    """As torch, JAX and others have them."""

    shape = (1,)
    dtype = "float32"

    def item(self) -> float:
        return 2.5


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1.5, 1.5),
        (True, 1.0),
        (-3, -3.0),
        (np.float16(0.5), 0.5),
        (np.int8(-4), -4.0),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (np.array([2.0]), 2.0),
        (np.array([[7]]), 7.0),
        (Tensor(), 2.5),
        (fractions.Fraction(1, 4), 0.25),
        (decimal.Decimal("0.5"), 0.5),
        (-(10**400), float("inf")),
    ],
)
def test_every_real_number_is_a_reward(value: Any, number: float) -> None:
    assert to_reward(value) == number
    assert type(to_reward(value)) is float


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "reward is None;"),
        ("1.0", "reward is '1.0' (str);"),
        (1j, "reward is 1j (complex);"),
        (np.complex64(1), "complex64);"),
        (np.zeros(2), "reward is an array of shape (2,) and dtype float64;"),
        (np.zeros(0), "reward is an array of shape (0,)"),
        ([1.0], "reward is a list of 1 elements;"),
        ({"agent": 1.0}, "reward is a dict of 1 elements;"),
        (np.array(["1"]), "dtype <U1;"),
    ],
)
def test_what_is_no_real_number_is_no_reward(value: Any, text: str) -> None:
    with pytest.raises(EnvFailureError) as caught:
        to_reward(value)
    assert text in str(caught.value)
    assert "step must return one real number as reward" in str(caught.value)


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, np.bool_(True), np.int64(1), np.array(True), np.array([1])]
)
def test_ends_may_be_said_in_every_number_that_is_0_or_1(value: Any) -> None:
    assert to_flag("truncated", value) is True
    assert to_flag("truncated", 1 - np.asarray(value, int)) is False


@pytest.mark.parametrize(
    "value", [None, "", "False", 2, -1, 0.5, float("nan"), np.zeros(2, bool), [], [True], {}]
)
def test_end_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(
        EnvFailureError, match=r"^terminated is .*; step must return True or False as terminated$"
    ):
        to_flag("terminated", value)


def test_answer_of_step_has_five_parts() -> None:
    five = (0, 1.0, False, False, {})
    assert opened_step(five) is five
    assert opened_step(list(five)) == five
    for answer, text in (
        ((0, 1.0, False, {}), "step returned four values, as the old gym did"),
        (None, "step returned None"),
        (np.zeros(5), r"step returned an array of shape \(5,\)"),
        ((0, 1.0), "step returned a tuple of 2 elements"),
    ):
        with pytest.raises(EnvFailureError, match=text):
            opened_step(answer)


class Env:
    def __init__(self, reset: Any) -> None:
        self.reset = reset


def test_reset_gets_what_it_takes() -> None:
    assert Resetter(Env(lambda seed: (seed, {})), "e")(3) == 3
    assert Resetter(Env(lambda **all_of_them: (sorted(all_of_them), {})), "e")(3) == ["seed"]
    assert Resetter(Env(lambda seed, options: ((seed, options), {})), "e")(3) == (3, None)
    assert Resetter(Env(lambda seed=None, options="own": ((seed, options), {})), "e")(None) == (
        None,
        "own",
    )
    assert Resetter(Env(lambda seed=None, options=None: ([seed, options], None)), "e")(
        1, options={"a": 1}
    ) == [1, {"a": 1}]


@pytest.mark.parametrize(
    ("reset", "text"),
    [
        (
            lambda: (0, {}),
            r"env 'e': reset\(\) takes no seed, .* write 'def reset\(self, \*, "
            r"seed=None, options=None\)'",
        ),
        (lambda *all_of_them: (0, {}), r"reset\(\) takes no seed"),
        (lambda level, seed=None: (0, {}), r"reset\(\) needs level, which no one gives it"),
    ],
)
def test_reset_that_cannot_be_called_is_refused_before_it_is(reset: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Resetter(Env(reset), "e")


def test_answer_of_reset_is_a_pair() -> None:
    for answer, text in (
        (np.zeros(2), r"an array of shape \(2,\)"),
        (np.zeros(3), r"an array of shape \(3,\)"),
        ({"a": 1}, "a dict"),
        (None, "None"),
    ):
        with pytest.raises(
            EnvFailureError, match=rf"^reset returned {text}.* must return two values"
        ):
            Resetter(Env(lambda seed, answer=answer: answer), "e")(0)


def test_inner_reset_that_takes_less_is_named() -> None:
    class NoSeed(gymnasium.Env):
        def reset(self) -> Any:  # type: ignore[override]
            return 0, {}

    with pytest.raises(EnvFailureError, match=r"reset\(\) takes no seed"):
        Resetter(gymnasium.Wrapper(NoSeed()), "e")(0)
    with pytest.raises(EnvFailureError, match=r"reset\(\) takes no options"):
        Resetter(Env(lambda **some: (lambda seed: (0, {}))(**some)), "e")(0, options={})

    def own_error(seed: int) -> Any:
        raise TypeError("its own")

    with pytest.raises(TypeError, match="its own"):
        Resetter(Env(own_error), "e")(0)


def test_names_that_mean_something_else_are_not_taken_for_ours() -> None:
    class Other:
        episode_limit = "long"
        spec = {"max_episode_steps": 5}  # noqa: RUF012

        def may_terminate(self) -> bool:
            return False

    assert (own_limit(Other()), may_terminate(Other())) == (None, True)
    assert (own_limit(PointEnv()), may_terminate(PointEnv())) == (40, False)
    for limit in (0, -1, True, 2.5, float("inf")):
        assert own_limit(type("E", (), {"episode_limit": limit})()) is None
    assert own_limit(gymnasium.make("Pendulum-v1")) == 200


def test_warnings_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        say_once("look here")
        say_once("look here")
    assert caplog.text.count("look here") == 1
