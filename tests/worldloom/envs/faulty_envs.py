"""Counting envs of which the first to get there misbehaves, once: in whichever process it is.

``FAULTY_DIR`` names a folder; a file in it says that the misbehaviour has happened.
"""

import ctypes
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.envs.toy import CountingEnv


def _is_first_time() -> bool:
    try:
        (Path(os.environ["FAULTY_DIR"]) / "happened").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class FaultyEnv(CountingEnv):
    def __init__(
        self, in_step: Callable[[], Any] | None = None, in_reset: Callable[[], Any] | None = None
    ) -> None:
        super().__init__()
        self._in_step = in_step
        self._in_reset = in_reset

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if self._in_reset is not None and self._misbehaves_in_reset():
            self._in_reset()
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self._in_step is not None and self._misbehaves_in_step():
            broken = self._in_step()
            obs = obs if broken is None else broken
        return obs, reward, terminated, truncated, info

    def _misbehaves_in_reset(self) -> bool:
        return self._episode >= 0 and _is_first_time()

    def _misbehaves_in_step(self) -> bool:
        return self._step == 3 and _is_first_time()


def _sleep() -> None:
    time.sleep(1000)


def _sleep_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(1000)


_hoard: list[bytes] = []


def _hoard_memory() -> None:
    _hoard.append(b"x" * 400_000_000)
    time.sleep(2.0)  # longer than it takes until that is seen


def _raise() -> None:
    raise RuntimeError("broken on purpose")


def hangs_in_step() -> FaultyEnv:
    return FaultyEnv(_sleep)


def hangs_holding_the_interpreter() -> FaultyEnv:
    return FaultyEnv(_sleep_with_the_lock)


def hangs_in_reset() -> FaultyEnv:
    return FaultyEnv(in_reset=_sleep)


def exits() -> FaultyEnv:
    return FaultyEnv(lambda: os._exit(3))


def hoards_memory() -> FaultyEnv:
    return FaultyEnv(_hoard_memory)


def calls_sys_exit() -> FaultyEnv:
    return FaultyEnv(lambda: sys.exit(3))


def segfaults() -> FaultyEnv:
    return FaultyEnv(lambda: ctypes.string_at(0))


def raises() -> FaultyEnv:
    return FaultyEnv(_raise)


def gives_nan() -> FaultyEnv:
    return FaultyEnv(lambda: np.full(3, np.nan, np.float32))


def gives_wrong_shape() -> FaultyEnv:
    return FaultyEnv(lambda: np.zeros(2, np.float32))


def hangs_in_first_reset() -> FaultyEnv:
    class Hanging(CountingEnv):
        def reset(self, **kwargs: Any) -> Any:
            if self._episode < 0 and _is_first_time():
                _sleep()
            return super().reset(**kwargs)

    return Hanging()


def always_hangs() -> FaultyEnv:
    class Hanging(CountingEnv):
        def step(self, action: np.ndarray) -> Any:
            _sleep()

    return Hanging()


def always_exits() -> FaultyEnv:
    os._exit(4)


def cannot_be_built() -> FaultyEnv:
    raise RuntimeError("no licence for this simulator")


def cannot_be_built_again() -> FaultyEnv:
    """Works until it has failed; then it can be built once it has been tried twice."""
    attempt = Path(os.environ["FAULTY_DIR"]) / "attempt"
    if (Path(os.environ["FAULTY_DIR"]) / "happened").exists() and not attempt.exists():
        attempt.touch()
        raise RuntimeError("the port is still in use")
    return raises()


class DawdlingEnv(CountingEnv):
    """Takes 0.2 s for one reset and one step in eight; which ones depends on its first seed."""

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._dice = random.Random(seed)
        self._dawdle()
        return super().reset(seed=seed, **kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._dawdle()
        return super().step(action)

    def _dawdle(self) -> None:
        time.sleep(0.2 if self._dice.random() < 1 / 8 else 0.0)


class EverFaultyEnv(FaultyEnv):
    """Misbehaves in every episode while ``FAULTY_DIR/ill`` exists."""

    def _misbehaves_in_reset(self) -> bool:
        return _is_ill()

    def _misbehaves_in_step(self) -> bool:
        return _is_ill()


def _is_ill() -> bool:
    return (Path(os.environ["FAULTY_DIR"]) / "ill").exists()


def _exit() -> None:
    os._exit(3)


def always_raises_in_reset() -> EverFaultyEnv:
    return EverFaultyEnv(in_reset=_raise)


def always_hangs_in_reset() -> EverFaultyEnv:
    return EverFaultyEnv(in_reset=_sleep)


def always_exits_in_step() -> EverFaultyEnv:
    return EverFaultyEnv(_exit)


def cannot_be_built_when_ill() -> EverFaultyEnv:
    if _is_ill():
        raise RuntimeError("no licence")
    return EverFaultyEnv()
