"""Counting envs, the later ones of which die: ``MortalEnv.healthy`` are well, and all that are
built after them raise.

Those make ``STEPS`` steps first; with a negative one they cannot even be reset.
"""

from typing import Any

import numpy as np

from worldloom.envs.toy import CountingEnv


class MortalEnv(CountingEnv):
    healthy = 1_000_000
    STEPS = 30

    def __init__(self) -> None:
        super().__init__()
        self._left = MortalEnv.STEPS if MortalEnv.healthy <= 0 else 1_000_000
        MortalEnv.healthy -= 1

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._check()
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        self._check()
        return super().step(action)

    def _check(self) -> None:
        if self._left < 0:
            raise RuntimeError("broken on purpose")
