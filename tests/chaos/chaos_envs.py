"""A counting env that misbehaves now and then, in every way that we know of, and writes down when
it did.

``CHAOS_LOG`` names a file that gets one line per misbehaviour; ``CHAOS_ODDS`` is the chance per
step.
"""

import ctypes
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.envs.toy import CountingEnv

KINDS = (
    "raise",
    "hang",
    "hang with the interpreter",
    "hang in reset",
    "nan",
    "wrong shape",
    "leak",
    "exit",
    "segfault",
)
LEAKED: list[bytearray] = []


class ChaosEnv(CountingEnv):
    def __init__(self) -> None:
        super().__init__()
        self._dice = random.Random()
        self._odds = float(os.environ["CHAOS_ODDS"])
        self._hangs_next_reset = False

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if self._hangs_next_reset:
            write_down("hang in reset")
            time.sleep(1000)
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        time.sleep(0.005)
        if self._dice.random() < self._odds:
            obs = self._misbehave(self._dice.choice(KINDS), obs)
        return obs, *rest  # type: ignore[return-value]

    def _misbehave(self, kind: str, obs: np.ndarray) -> np.ndarray:
        self._hangs_next_reset = kind == "hang in reset"
        if not self._hangs_next_reset:
            write_down(kind)
        if kind == "raise":
            raise RuntimeError("broken on purpose")
        if kind == "hang":
            time.sleep(1000)
        if kind == "hang with the interpreter":
            ctypes.PyDLL(None).sleep(1000)
        if kind == "exit":
            os._exit(3)
        if kind == "segfault":
            ctypes.string_at(0)
        if kind == "leak":
            LEAKED.append(bytearray(os.urandom(1) * 20_000_000))
        return {"nan": np.full(3, np.nan, np.float32), "wrong shape": np.zeros(2, np.float32)}.get(
            kind, obs
        )


def write_down(kind: str) -> None:
    """What happens now."""
    with Path(os.environ["CHAOS_LOG"]).open("a") as file:
        file.write(f"{time.time()} {kind}\n")
