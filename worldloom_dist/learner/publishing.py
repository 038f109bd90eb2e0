"""Policy weights from a GPU to the store, off the training thread.

    training stream: parameters --copied into--> one flat device buffer --event--> (next update)
    copy stream:     waits for the event: flat buffer --> pinned host buffer
    own thread:      waits for that copy, makes the snapshot, hands it to the store

All that the training thread does is to queue a handful of small kernels. Nothing of it happens
inside a captured update.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldloom.core.sequence import PolicyVersion
from worldloom.core.weights import TensorEntry, WeightsSnapshot
from worldloom.nn.snapshot import flat_bytes
from worldloom_dist.ports import WeightSink

__all__ = ["CudaDownload", "Download", "Published", "Publisher"]

logger = logging.getLogger(__name__)


class Download(Protocol):
    """What the publisher needs of CUDA; a test puts a fake in its place."""

    def begin(self, flat: Tensor) -> Callable[[], np.ndarray]:
        """Start copying bytes ``[n]`` to the host; what is returned waits for them and gives an
        array of its own.
        """


@dataclass(frozen=True, slots=True)
class Published:
    """A version that was handed to the store: seconds from the order to that, and its size."""

    seconds: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Job:
    version: PolicyVersion
    entries: tuple[TensorEntry, ...]
    receive: Callable[[], np.ndarray]
    ordered: float


class Publisher:
    """Publishes one version at a time in the background.

    Args:
        weights: Where versions go.
        download: How bytes get to the host.
        dtype: What floating-point tensors become.
    """

    def __init__(
        self, weights: WeightSink, download: Download, dtype: torch.dtype = torch.float32
    ) -> None:
        self._weights = weights
        self._download = download
        self._dtype = dtype
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self.done: queue.Queue[Published] = queue.Queue()
        self._idle = threading.Event()
        self._idle.set()
        self._failed: Exception | None = None
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> None:
        """Take the tensors as they are at this point of the training stream; waits for the previous
        version if it must.
        """
        ordered = time.monotonic()
        self._idle.wait()
        self._idle.clear()
        flat, entries = flat_bytes(tensors, self._dtype)
        self._jobs.put(_Job(version, entries, self._download.begin(flat), ordered))

    def wait(self) -> None:
        """Wait until the store has the version that was ordered last.

        Raises:
            Exception: What kept it from the store.
        """
        self._idle.wait()
        if self._failed is not None:
            raise self._failed

    def finished(self) -> list[Published]:
        """What was handed over since the last call."""
        return [self.done.get_nowait() for _ in range(self.done.qsize())]

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._failed = None
            try:
                buffer = job.receive()
                buffer.flags.writeable = False
                self._weights.publish(WeightsSnapshot(job.version, job.entries, buffer))
                self.done.put(Published(time.monotonic() - job.ordered, buffer.nbytes))
            # the edge of the thread: actors go on with the weights they have
            except Exception as error:
                self._failed = error
                logger.warning("weights %s were not published: %s", job.version, error)
            finally:
                self._idle.set()


class CudaDownload:
    """The real one: a copy stream, and a pinned buffer that is kept.

    Args:
        device: Of the weights.
    """

    def __init__(self, device: str) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream(torch.device(device))  # type: ignore[no-untyped-call]
        self._pinned: Tensor | None = None

    def begin(self, flat: Tensor) -> Callable[[], np.ndarray]:
        """See :class:`Download`."""
        if self._pinned is None or self._pinned.shape != flat.shape:
            with torch.cuda.device(flat.device):
                self._pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        pinned = self._pinned
        self.stream.wait_stream(torch.cuda.current_stream(flat.device))
        with torch.cuda.stream(self.stream):
            pinned.copy_(flat, non_blocking=True)
            arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self.stream)
        flat.record_stream(self.stream)

        def receive() -> np.ndarray:
            """Wait, and copy out of the pinned buffer, which the next version will use."""
            arrived.synchronize()
            return pinned.numpy().copy()

        return receive
