"""Checkpoints off the training thread: that thread copies the state, another one serialises,
checksums and flushes it to disk.

    training thread: state_dict() (copies)  -> queue of one ->  writer thread: device to host,
    files, fsync, rename, drop old ones

A failed write costs a warning, not the run: earlier checkpoints are kept and the next one is tried.
Only the last one of a run must succeed (:meth:`CheckpointWriter.close`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worldloom.core.exceptions import CheckpointError
from worldloom.nn.cuda_streams import recorded_event, use_device
from worldloom.training.checkpoints import CheckpointStore

__all__ = ["CheckpointWriter", "Written"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that is complete: its update, when it was complete (unix time), what the writing
    took, and its size.
    """

    step: int
    at: float
    seconds: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Job:
    step: int
    tree: Mapping[str, Any]
    facts: Mapping[str, Any]
    score: float | None
    copied: Any


class CheckpointWriter:
    """Writes one checkpoint at a time in the background.

    Args:
        store: Where they go.
        device: Where the tensors of a state are.
    """

    def __init__(self, store: CheckpointStore, device: str = "cpu") -> None:
        self._store = store
        self._device = torch.device(device)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=1)
        self._written: queue.Queue[Written] = queue.Queue()
        self._idle = threading.Event()
        self._idle.set()
        self._failed: Exception | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """True when a checkpoint would be written at once."""
        return self._idle.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a checkpoint would be written at once; False when that took too long."""
        return self._idle.wait(timeout_s)

    def save(
        self,
        step: int,
        tree: Mapping[str, Any],
        facts: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Hand over a state whose tensors no one changes any more; waits for the previous
        checkpoint if it must.

        Args:
            step: Names the checkpoint.
            tree: As :func:`worldloom.training.tree_files.save_tree` takes it; tensors may be on a
                GPU.
            facts: For its manifest.
            score: Of an evaluation: keep this checkpoint as ``best`` if no better one is there.
        """
        copied = recorded_event(self._device) if self._device.type == "cuda" else None
        self.wait()
        self._idle.clear()
        self._jobs.put(_Job(step, tree, facts, score, copied))

    def finished(self) -> tuple[list[Written], int]:
        """What was completed since the last call, and how many writes failed."""
        done = []
        while not self._written.empty():
            done.append(self._written.get_nowait())
        failures = self._failures
        self._failures = 0
        return done, failures

    def close(self) -> None:
        """Wait for the last checkpoint and end the thread.

        Raises:
            CheckpointError: If the last one could not be written.
        """
        self._jobs.put(None)
        self._thread.join()
        if self._failed is not None:
            raise CheckpointError(
                f"the last checkpoint could not be written ({self._failed}); earlier ones are kept"
            )

    def _run(self) -> None:
        use_device(str(self._device))
        while (job := self._jobs.get()) is not None:
            started = time.monotonic()
            try:
                size = self._write(job)
                self._failed = None
                self._written.put(Written(job.step, time.time(), time.monotonic() - started, size))
            # the edge of the thread: the run goes on with the checkpoints it has
            except Exception as error:
                self._failed = error
                self._failures += 1
                logger.warning(
                    "checkpoint of update %d was not written: %s; earlier ones are kept",
                    job.step,
                    error,
                )
            finally:
                self._idle.set()

    def _write(self, job: _Job) -> int:
        tree = job.tree
        if job.copied is not None:
            side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):
                side.wait_event(job.copied)
                tree = to_host(tree)
                side.synchronize()
        folder = self._store.save(job.step, tree, job.facts)
        if job.score is not None:
            self._store.mark_best(folder, job.score)
        return self._store.size(folder)


def to_host(node: Any) -> Any:
    if isinstance(node, torch.Tensor) and node.device.type == "cuda":
        return torch.empty(node.shape, dtype=node.dtype, pin_memory=True).copy_(
            node, non_blocking=True
        )
    if isinstance(node, Mapping):
        return {key: to_host(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(to_host(value) for value in node)
    return node
