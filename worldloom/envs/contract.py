"""What foreign env owes to Gymnasium's contract, and the sentence that it gets for a
breach.

Good answers pass at the cost of a type check: these functions are called for every step of every
env.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError, EnvFailureError

__all__ = [
    "LARGEST",
    "Resetter",
    "call_step",
    "close_env",
    "describe",
    "may_terminate",
    "opened_step",
    "own_limit",
    "say_once",
    "to_flag",
    "to_reward",
]

logger = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float32).max)
"""Rows hold float32: nothing larger than this can be stored."""
RESET = "def reset(self, *, seed=None, options=None)"
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
FOUR_VALUES = (
    "step returned four values, as the old gym did, and Gymnasium takes five; write "
    "'return observation, reward, terminated, truncated, info', or wrap the env in "
    "shimmy.GymV21CompatibilityV0"
)
FOUR_OF_FIVE = "(expected 5, got 4)"
NOT_A_PAIR = "values to unpack (expected 2"
"""What Python says in a wrapper whose inner env answers so."""
NO_PAIR = "must return two values; write 'return observation, {}'"
LONGEST_TEXT = 60


def describe(value: Any) -> str:
    """A value that came where something else was expected, in a few words."""
    if value is None:
        return "None"
    if getattr(value, "shape", ()) != ():
        return (
            f"an array of shape {tuple(value.shape)} and dtype {getattr(value, 'dtype', 'unknown')}"
        )
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)} elements"
    text = " ".join(repr(value).split())
    text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
    return f"{text} ({type(value).__name__})"


def call_step(env: Any, action: Any) -> tuple[Any, ...]:
    """Step an env: the five parts of its answer.

    Raises:
        EnvFailureError: If there are not five, also where a wrapper around the env finds that out.
    """
    try:
        answer = env.step(action)
    except ValueError as error:
        if FOUR_OF_FIVE in str(error):
            raise EnvFailureError(FOUR_VALUES) from error
        raise
    return opened_step(answer)


def opened_step(answer: Any) -> tuple[Any, ...]:
    """The five parts of what ``step`` returned.

    Raises:
        EnvFailureError: If there are not five.
    """
    if type(answer) is tuple and len(answer) == 5:
        return answer
    if isinstance(answer, tuple | list) and len(answer) == 5:
        return tuple(answer)
    if isinstance(answer, tuple | list) and len(answer) == 4:
        raise EnvFailureError(FOUR_VALUES)
    raise EnvFailureError(
        f"step returned {describe(answer)} and must return five values; write "
        "'return observation, reward, terminated, truncated, info'"
    )


def to_reward(value: Any) -> float:
    """A reward as a number; of an array that has one element, this element.

    Raises:
        EnvFailureError: If it is no real number.
    """
    if isinstance(value, float):  # and numpy's float64
        return float(value)
    number = _item(value)
    if isinstance(number, float | int | Real | Decimal):
        try:
            return float(number)
        except OverflowError:
            return float("inf")  # too large in either direction, which is all that matters
    raise EnvFailureError(
        f"reward is {describe(value)}; step must return one real number as reward"
    )


def to_flag(name: str, value: Any) -> bool:
    """``terminated`` or ``truncated`` as a bool; 0 and 1 say it too, and so does an array that has
    one element.

    Raises:
        EnvFailureError: If it is anything else.
    """
    if type(value) is bool:
        return value
    number = _item(value)
    if isinstance(number, bool | Real) and number in (0, 1):
        return bool(number)
    raise EnvFailureError(f"{name} is {describe(value)}; step must return True or False as {name}")


def own_limit(env: Any) -> int | None:
    """Steps after which an env says that it truncates: its ``episode_limit``, else what Gymnasium
    registered; None if neither.

    Anything else under these names is not meant for us.
    """
    for value in (
        getattr(env, "episode_limit", None),
        getattr(getattr(env, "spec", None), "max_episode_steps", None),
    ):
        if isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0:
            return int(value)
    return None


def may_terminate(env: Any) -> bool:
    """False if the env says ``may_terminate = False``; anything else under this name is not meant
    for us.
    """
    return getattr(env, "may_terminate", True) is not False


def close_env(env: Any) -> None:
    """Close an env that has something to close."""
    close = getattr(env, "close", None)
    if close is not None:
        close()


class Resetter:
    """Calls ``reset`` as the env takes it, and opens its answer.

    Args:
        env: The env.
        name: How it is called in messages.

    Raises:
        ConfigurationError: If ``reset`` takes no seed, or needs more than a seed and options.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._reset: Callable[..., Any] = env.reset
        self._options: dict[str, Any] = {}
        try:
            parameters = list(inspect.signature(env.reset).parameters.values())
        except (TypeError, ValueError):  # of a function that is not written in Python
            return
        by_name = {
            parameter.name: parameter for parameter in parameters if parameter.kind in BY_NAME
        }
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        if "seed" not in by_name and not takes_all:
            raise ConfigurationError(f"env {name!r}: {_no_seed()}")
        needed = [
            n
            for n, p in by_name.items()
            if p.default is inspect.Parameter.empty and n not in ("seed", "options")
        ]
        if needed:
            raise ConfigurationError(
                f"env {name!r}: reset() needs {', '.join(needed)}, which no one gives "
                f"it; write '{RESET}'"
            )
        if "options" in by_name and by_name["options"].default is inspect.Parameter.empty:
            self._options = {"options": None}

    def __call__(self, seed: Any, **options: Any) -> Any:
        """Start an episode: its first observation.

        Raises:
            EnvFailureError: If an inner ``reset`` takes no seed or no options, or the answer is no
                pair.
        """
        try:
            answer = self._reset(seed=seed, **(options or self._options))
        except TypeError as error:
            if "unexpected keyword argument 'seed'" in str(error):
                raise EnvFailureError(_no_seed()) from error
            if "unexpected keyword argument 'options'" in str(error):
                raise EnvFailureError(f"reset() takes no options; write '{RESET}'") from error
            raise
        except ValueError as error:
            if NOT_A_PAIR in str(error):
                raise EnvFailureError(f"reset {NO_PAIR}") from error
            raise
        if isinstance(answer, tuple | list) and len(answer) == 2:
            return answer[0]
        raise EnvFailureError(f"reset returned {describe(answer)} and {NO_PAIR}")


@functools.cache
def say_once(text: str) -> None:
    """Log a warning, once per process however many envs it is true of."""
    logger.warning("%s", text)


def _no_seed() -> str:
    return (
        f"reset() takes no seed, so its episodes cannot be repeated; write '{RESET}' with "
        "super().reset(seed=seed) as first line"
    )


def _item(value: Any) -> Any:
    """The only element of an array of any library; everything else as it is."""
    item = getattr(value, "item", None)
    if item is None:
        return value
    try:
        return item()
    except Exception:  # arrays of every library refuse more than one element in their own way
        return value
