"""What happens when a loss or gradient is not finite: the agent skips the step, and this guard
counts, saves and finally stops.

The flag is read one step late on an accelerator, when its copy has arrived anyway, so the guard
never waits for the device.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloom.core.exceptions import TrainingError
from worldloom.data.windows import SampledWindows
from worldloom.nn.cuda_streams import recorded_event

__all__ = ["NonfiniteGuard"]

logger = logging.getLogger(__name__)


class NonfiniteGuard:
    """Counts skipped updates.

    Args:
        folder: Where the batches of skipped updates are saved (at most ``max_saved``); None saves
            nothing.
        limit: Skipped updates in a row after which training fails.
        max_saved: Batches kept on disk.
    """

    def __init__(self, folder: Path | None, *, limit: int = 10, max_saved: int = 10) -> None:
        self.skipped = 0
        self._folder = folder
        self._limit = limit
        self._max_saved = max_saved
        self._in_a_row = 0
        self._pending: deque[tuple[int, Any, Any, SampledWindows]] = deque()

    def watch(self, step: int, nonfinite: Any, windows: SampledWindows) -> None:
        """Take the flag of update ``step``; diagnose those flags that have arrived.

        Raises:
            TrainingError: After ``limit`` skipped updates in a row.
        """
        flag = nonfinite
        arrived = None
        if isinstance(nonfinite, torch.Tensor) and nonfinite.device.type == "cuda":
            flag = torch.empty((), dtype=torch.float32, pin_memory=True)
            flag.copy_(nonfinite, non_blocking=True)
            arrived = recorded_event(nonfinite.device)
        self._pending.append((step, flag, arrived, windows))
        while self._pending and (self._pending[0][2] is None or self._pending[0][2].query()):
            self.judge(*self._pending.popleft())

    def flush(self) -> None:
        """Wait for the flags that are still on their way and diagnose them."""
        while self._pending:
            arrived = self._pending[0][2]
            if arrived is not None:
                arrived.synchronize()
            self.judge(*self._pending.popleft())

    def judge(self, step: int, flag: Any, _: Any, windows: SampledWindows) -> None:
        """Look at the flag of an update that has been made."""
        if not bool(flag):
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        logger.warning(
            "update %d skipped: a loss or gradient was not finite (%d in a row)",
            step,
            self._in_a_row,
        )
        if self._folder is not None and self.skipped <= self._max_saved:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"update-{step:09d}.npz"
            columns: dict[str, Any] = {"row_ids": windows.row_ids, **windows.columns}
            np.savez_compressed(path, **columns)
        if self._in_a_row >= self._limit:
            saved = f"; their batches are in {self._folder}" if self._folder else ""
            raise TrainingError(
                f"{self._in_a_row} updates in a row were not finite, up to update {step}{saved}"
            )
