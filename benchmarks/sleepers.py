"""Envs that do nothing but take their time, for ``benchmarks/central.py``."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from worldloom.envs.toy import PointEnv

__all__ = ["mixed", "two_ms"]

SLEEPS_S = (0.005, 0.01, 0.02, 0.05)


class Sleeper(PointEnv):
    """A point that rests at every step, for each of the given times in turn."""

    def __init__(self, *sleeps_s: float) -> None:
        super().__init__()
        self._sleeps_s = itertools.cycle(sleeps_s)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rest, then move."""
        time.sleep(next(self._sleeps_s))
        return super().step(action)


def two_ms() -> Sleeper:
    """Two milliseconds."""
    return Sleeper(0.002)


def mixed() -> Sleeper:
    """Five to fifty milliseconds, step by step."""
    return Sleeper(*SLEEPS_S)
