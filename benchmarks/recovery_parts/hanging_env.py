"""An env that hangs when it is told to, and writes down when, and when the next one steps."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.envs.toy import CountingEnv

STEP_S = 0.005


class HangingEnv(CountingEnv):
    """Hangs in the step after a file ``hang`` has appeared; the first env to find it takes it."""

    def __init__(self) -> None:
        super().__init__()
        self._marks = Path(os.environ["WORLDLOOM_MARKS"])
        self._has_stepped = False

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As the toy, a little slower."""
        time.sleep(STEP_S)
        if (self._marks / "hang").exists():
            try:
                (self._marks / "hang").rename(self._marks / "taken")
            except FileNotFoundError:  # another env was faster
                return super().step(action)
            self._write("hung")
            time.sleep(1000)
        if not self._has_stepped:
            self._has_stepped = True
            self._write("env")
        return super().step(action)

    def _write(self, kind: str) -> None:
        moment = time.monotonic()
        (self._marks / f"{kind}-{os.getpid()}-{id(self)}").write_text(str(moment))
