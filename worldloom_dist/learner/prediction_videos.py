"""Pictures of what the agent predicts, drawn now and then while it trains, into RUN/videos.

    learner thread: due? -> agent.report (a forward pass) -> writer thread: encode, write, append to
    videos/index.jsonl

No one waits for the writer: a report that becomes due while the last one is still being written is
left out. A report that fails is logged and never stops training. ``agent.report`` draws from a
generator of its own, so training is the same with and without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import MissingDependencyError
from worldloom.core.json_text import to_json
from worldloom.core.protocol import Reporting
from worldloom.core.sequence import SequenceBatch

__all__ = ["PredictionVideos"]

logger = logging.getLogger(__name__)

FPS = 8
KEPT = 100
"""Pictures kept per key; the oldest make room."""


class PredictionVideos:
    """Decides when a report is due, and writes it in the background.

    Args:
        folder: Where pictures go; made when the first one is written.
        every: Env steps between two reports; 0 for none.
        done: Env steps that earlier lives of the run had reported up to.
    """

    def __init__(self, folder: Path, every: int, done: int = 0) -> None:
        self.folder = folder
        self._every = every
        self._last = done
        self._writer = ThreadPoolExecutor(1, "report")
        self.pending: Future[None] | None = None

    def is_due(self, env_steps: int) -> bool:
        """True when this many env steps have gone by since the last report."""
        return self._every > 0 and env_steps - self._last >= self._every

    def report(
        self,
        agent: Any,
        batch: SequenceBatch,
        env_steps: int,
        train_steps: int,
        *,
        wait_s: float = 0.0,
    ) -> None:
        """Draw the agent's predictions on a batch and hand them to the writer; an agent that draws
        nothing is left alone.

        Args:
            agent, batch: What is drawn.
            env_steps, train_steps: Of the run, now.
            wait_s: How long an earlier report may still be written before this one is left out.
        """
        self._last = env_steps
        if not self._every or not isinstance(agent, Reporting):
            return
        self.collect(wait_s)
        if self.pending is not None:
            logger.info(
                "report at env_steps %s left out: the last one is still being written",
                f"{env_steps:,}",
            )
            return
        try:
            videos = agent.report(batch)
        except Exception as error:  # a picture is never worth a run
            logger.warning(
                "report at env_steps %s failed: %s: %s",
                f"{env_steps:,}",
                type(error).__name__,
                error,
            )
            return
        if videos:
            self.pending = self._writer.submit(self._write, dict(videos), env_steps, train_steps)

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait for the writer, for a while."""
        if self.pending is not None:
            self.collect(timeout_s)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def collect(self, timeout_s: float = 0.0) -> None:
        """Let go of what the writer has finished; say why it failed."""
        pending = self.pending
        if pending is None or (not pending.done() and not timeout_s):
            return
        try:
            pending.result(timeout_s)
        except MissingDependencyError as error:
            self._every = 0
            logger.warning("no more reports: %s", error)
        except Exception as error:  # the disk is full, a picture is odd: training goes on
            logger.warning("report could not be written: %s: %s", type(error).__name__, error)
        self.pending = None

    def _write(self, videos: Mapping[str, np.ndarray], env_steps: int, train_steps: int) -> None:
        from worldloom.evaluation.visualize import save_frames

        for key, frames in videos.items():
            stem = f"open_loop-{key.replace('/', '_')}-"
            path = self.folder / f"{stem}{env_steps:010d}.{'png' if len(frames) == 1 else 'gif'}"
            save_frames(frames, path, fps=FPS)
            record = {
                "name": f"open_loop/{key}",
                "path": path.name,
                "env_steps": env_steps,
                "train_steps": train_steps,
                "fps": FPS,
            }
            with (self.folder / "index.jsonl").open("a") as file:
                file.write(to_json({**record, "time": time.time()}) + "\n")
            for old in sorted(self.folder.glob(f"{stem}{'[0-9]' * 10}.*"))[:-KEPT]:
                old.unlink()
