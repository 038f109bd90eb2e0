"""Envs that do nothing but take their time, for ``benchmarks/central.py``."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import numpy as np

from worldloom.envs.toy import PointEnv

__all__ = ["mixed", "two_ms"]

SLEEPS_S = (0.005, 0.01, 0.02, 0.05)
COUNT = itertools.count()


class Sleeper(PointEnv):
    """A point that rests at every step."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rest, then move."""
        time.sleep(self._seconds)
        return super().step(action)


def two_ms() -> Sleeper:
    """Two milliseconds."""
    return Sleeper(0.002)


def mixed() -> Sleeper:
    """Five to fifty milliseconds, by process."""
    return Sleeper(SLEEPS_S[(os.getpid() + next(COUNT)) % len(SLEEPS_S)])
