"""What foreign vector env does where Gymnasium leaves it a choice: the seeds it takes, and
when it resets what ended.

What an env says is held against what it does; where both leave a choice open, the most usual one is
taken and said.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, WorldLoomError
from worldloom.envs.building import FOREIGN_ERRORS, error_text
from worldloom.envs.contract import LARGEST, Resetter, describe, say_once
from worldloom.envs.vector import env_seed

__all__ = ["Autoreset", "VectorResetter", "flags_of", "foreign_vector", "rewards_of"]

FINAL_KEYS = ("final_obs", "final_observation")
SET_MODE = (
    "set metadata['autoreset_mode'] to AutoresetMode.NEXT_STEP, SAME_STEP or DISABLED, "
    "whichever it is"
)
REFUSALS = (
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    OverflowError,
    gymnasium.error.Error,
)
"""What a ``reset`` raises that does not take a seed in the form it came in."""


@contextlib.contextmanager
def foreign_vector(name: str, doing: str) -> Iterator[None]:
    """Call a vector env that is not ours.

    Raises:
        EnvFailureError: If it raises anything but an error of ours, or calls ``sys.exit``.
    """
    try:
        yield
    except WorldLoomError:
        raise
    except SystemExit as error:
        raise EnvFailureError(f"{name} called sys.exit({error.code!r})") from error
    except FOREIGN_ERRORS as error:
        raise EnvFailureError(f"vector env {name!r}: {doing} raised {error_text(error)}") from error


class VectorResetter:
    """Resets a vector env, with one seed per env where it takes them, else with one seed for all.

    Args:
        env: The vector env.
        name: How it is called in messages.

    Raises:
        ConfigurationError: If ``reset`` takes no seed.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._reset = Resetter(env, name)
        self._num_envs = env.num_envs
        self._name = name
        self._takes_list = _says_it_takes_list(env)
        self._is_known = False

    def __call__(self, seed: int | None, **options: Any) -> Any:
        """Start an episode in every env (with ``options``, in those that it names): the
        observations.

        Raises:
            EnvFailureError: If the env takes neither a list of seeds nor a number.
        """
        if seed is None:
            return self._reset(None, **options)
        if not self._is_known:
            return self._find_out(seed)
        return self._reset(self._form(seed, self._takes_list))

    def _form(self, seed: int, takes_list: bool) -> Any:
        return (
            [env_seed(seed, index) for index in range(self._num_envs)]
            if takes_list
            else env_seed(seed, 0)
        )

    def _find_out(self, seed: int) -> Any:
        refusals = []
        for takes_list in (self._takes_list, not self._takes_list):
            try:
                obs = self._reset(self._form(seed, takes_list))
            except REFUSALS as error:
                refusals.append(error)
                continue
            self._takes_list = takes_list
            self._is_known = True
            return obs if takes_list or self._num_envs == 1 else self._look_for_twins(seed, obs)
        why = error_text(refusals[0])
        if why == error_text(refusals[1]):  # whatever the seed is
            raise refusals[0]
        raise EnvFailureError(
            f"vector env {self._name!r}: reset(seed=...) takes neither a number nor a "
            f"list of one per env ({why}); "
            "write 'def reset(self, *, seed=None, options=None)' with "
            "super().reset(seed=seed) as first line"
        ) from refusals[0]

    def _look_for_twins(self, seed: int, obs: Any) -> Any:
        """Say so if all envs draw alike from the one seed: they start alike, and from another seed
        alike but elsewhere.
        """
        if not _are_rows_equal(obs):
            return obs
        first = _leaves(obs)
        other = _leaves(self._reset(env_seed(seed, 1)))
        if all(_are_rows_equal(leaf) for leaf in other) and any(
            not np.array_equal(a, b) for a, b in zip(first, other, strict=True)
        ):
            say_once(
                f"vector env {self._name!r} starts all its envs alike; draw the start "
                "of each from self.np_random, "
                "or let reset take a list of seeds"
            )
        return self._reset(self._form(seed, takes_list=False))


class Autoreset:
    """When a vector env resets what ended: what it says, until what it does decides.

    Args:
        env: The vector env.
        name: How it is called in messages.

    Attributes:
        mode: What is believed now.

    Raises:
        ConfigurationError: If it says something that is no mode.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._name = name
        said = _said_mode(env, name)
        self._is_said = said is not None
        self.mode = said or AutoresetMode.NEXT_STEP

    def see_ends(self, ended: np.ndarray, infos: Any) -> None:
        """Look at the infos of a step in which envs ended.

        Raises:
            EnvFailureError: If they contradict what the env says.
        """
        has_final = _final(infos) is not None and any(
            _has_final(infos, int(index)) for index in np.flatnonzero(ended)
        )
        if self.mode is AutoresetMode.SAME_STEP or not (has_final or isinstance(infos, Mapping)):
            return
        if has_final and self._is_said:
            raise EnvFailureError(
                f"vector env {self._name!r} says that its autoreset mode is "
                f"{self.mode.name}, and gives infos['final_obs'] at an "
                f"episode's end, as only SAME_STEP does; {SET_MODE}"
            )
        if has_final or "final_info" in infos:
            self.mode = AutoresetMode.SAME_STEP
        elif not self._is_said:
            say_once(
                f"vector env {self._name!r} does not say when it resets, and is taken "
                f"for NEXT_STEP; {SET_MODE}"
            )

    def see_reset_rows(
        self, first: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        """Look at the rows in which a NEXT_STEP env resets (``first``): an action led to none of
        them.

        Raises:
            EnvFailureError: If one has a reward or an end.
        """
        wrong = np.flatnonzero(first & ((reward != 0) | terminated | truncated))
        if wrong.size:
            env = int(wrong[0])
            raise EnvFailureError(
                f"vector env {self._name!r}: env {env} ended, and its next row has "
                f"reward {reward[env]:g}, terminated "
                f"{bool(terminated[env])}, truncated {bool(truncated[env])}, where a "
                "NEXT_STEP env resets and gives "
                f"0, False, False; {SET_MODE}"
            )

    def final_obs(self, infos: Any, index: int) -> Any:
        """The last observation of an episode of env ``index``, which a SAME_STEP env gives beside
        the first of the next one.

        Raises:
            EnvFailureError: If there is none.
        """
        if not _has_final(infos, index):
            raise EnvFailureError(
                f"vector env {self._name!r} resets in the same step but gives no "
                f"infos['final_obs'] for env {index}, which ended; "
                f"give it, or {SET_MODE}"
            )
        return _pick(_final(infos), index)


def rewards_of(name: str, value: np.ndarray) -> np.ndarray:
    """[N] rewards as float64.

    Raises:
        EnvFailureError: If one is no number, or not finite in float32.
    """
    if value.dtype.kind not in "biuf":
        raise EnvFailureError(
            f"reward of vector env {name!r} is of dtype {value.dtype}; give real numbers"
        )
    reward: np.ndarray = value.astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(reward) <= LARGEST))  # NaN too
    if wrong.size:
        raise EnvFailureError(
            f"reward {reward[wrong[0]]} of env {wrong[0]} of vector env {name!r} is "
            "not finite in float32 "
            "(at most 3.4e38 in size); mend or scale it inside the env"
        )
    return reward


def flags_of(what: str, name: str, value: np.ndarray) -> np.ndarray:
    """[N] ``terminated`` or ``truncated`` as bool.

    Raises:
        EnvFailureError: If one is neither True nor False, 1 nor 0.
    """
    if value.dtype == bool:
        return value
    if value.dtype.kind not in "iuf" or np.any((value != 0) & (value != 1)):
        raise EnvFailureError(
            f"{what} of vector env {name!r} is {describe(value)}; give True or False for every env"
        )
    return value.astype(bool)


def _says_it_takes_list(env: Any) -> bool:
    """What the type of ``seed`` says; without one a list comes first, because only a list surely
    seeds every env otherwise.
    """
    try:
        annotation = inspect.signature(env.unwrapped.reset).parameters["seed"].annotation
    except (AttributeError, KeyError, TypeError, ValueError):
        return True
    if annotation is inspect.Parameter.empty:
        return True
    text = (annotation if isinstance(annotation, str) else str(annotation)).lower()
    return "int" not in text or any(
        word in text for word in ("list", "sequence", "iterable", "tuple", "array")
    )


def _said_mode(env: Any, name: str) -> AutoresetMode | None:
    metadata = getattr(env, "metadata", None)
    said = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
    if said is None or isinstance(said, AutoresetMode):
        return said
    for mode in AutoresetMode:
        if _plain(said) in (_plain(mode.name), _plain(mode.value)):
            return mode
    raise ConfigurationError(
        f"vector env {name!r} has metadata['autoreset_mode'] = {said!r}, which is no "
        f"such mode; {SET_MODE}"
    )


def _plain(mode: Any) -> str:
    return str(mode).rpartition(".")[2].replace("_", "").replace("-", "").replace(" ", "").lower()


def _final(infos: Any) -> Any:
    return (
        next((infos[key] for key in FINAL_KEYS if key in infos), None)
        if isinstance(infos, Mapping)
        else None
    )


def _has_final(infos: Any, index: int) -> bool:
    final = _final(infos)
    mask = (
        next((infos[f"_{key}"] for key in FINAL_KEYS if f"_{key}" in infos), None)
        if isinstance(infos, Mapping)
        else None
    )
    if final is None or (mask is not None and not mask[index]):
        return False
    picked = _pick(final, index)
    return picked is not None and not (
        isinstance(picked, dict | tuple) and any(part is None for part in _leaves(picked))
    )


def _pick(final: Any, index: int) -> Any:
    """The observation of one env from an array or list of observations, or from a mapping or tuple
    of arrays.
    """
    if isinstance(final, Mapping):
        return {key: _pick(value, index) for key, value in final.items()}
    if isinstance(final, tuple):
        return tuple(_pick(value, index) for value in final)
    return final[index]


def _leaves(obs: Any) -> list[Any]:
    if isinstance(obs, Mapping):
        return [leaf for value in obs.values() for leaf in _leaves(value)]
    if isinstance(obs, tuple):
        return [leaf for value in obs for leaf in _leaves(value)]
    return [obs]


def _are_rows_equal(obs: Any) -> bool:
    return all(bool(np.all(np.asarray(leaf) == np.asarray(leaf)[:1])) for leaf in _leaves(obs))
