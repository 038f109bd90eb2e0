"""From sampled windows to a batch on the learner's device, off the training thread.

On a CPU the arrays become tensors (read-only ones, from an object store, are copied once). On a GPU
each batch goes through one of two sets of pinned buffers and a copy stream of its own: while one
batch is trained on, the next one is already on its way.

    SampledWindows --memcpy--> pinned buffer A or B --copy stream--> SequenceBatch + event
                   --the training stream waits for the event--> SequenceBatch
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldloom.core.sequence import SequenceBatch
from worldloom.data.windows import SampledWindows

__all__ = ["Lane", "Stager"]

SLOTS = 2


class Lane(Protocol):
    """What staging needs of CUDA; a test puts a fake in its place."""

    def pin(self, like: Tensor) -> Tensor:
        """A page-locked tensor of that shape and dtype."""

    def upload(self, pinned: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Start copying to the device; returns the device tensors and an event that happens when
        they are complete.
        """

    def await_on_stream(self, event: Any, tensors: Sequence[Tensor]) -> None:
        """Make the training stream wait for the event, and keep the tensors' memory until it has
        used them.
        """


@dataclass
class _Slot:
    """One set of pinned buffers, and the event after which it may be overwritten."""

    pinned: dict[int, Tensor] = field(default_factory=dict)
    event: Any = None


class Stager:
    """Puts windows on the device. One thread stages, another one takes.

    Args:
        device: Of the agent.
        lane: How to get there; by default a CUDA copy stream, and nothing on a CPU.
    """

    def __init__(self, device: str = "cpu", lane: Lane | None = None) -> None:
        place = torch.device(device)
        self._lane = lane or (_CudaLane(place) if place.type == "cuda" else None)
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._turn = 0
        self._seconds: deque[float] = deque()  # one thread appends, another one takes

    def stage(self, windows: SampledWindows) -> SequenceBatch:
        """Start bringing windows to the device; :meth:`take` gives the batch that may be read."""
        started = time.monotonic()
        arrived = None
        if self._lane is None:
            columns = {name: _host_tensor(array) for name, array in windows.columns.items()}
        else:
            columns, arrived = self._send(self._lane, windows)
        batch = SequenceBatch.from_columns(columns, windows.row_ids)
        self._seconds.append(time.monotonic() - started)
        return replace(batch, windows=windows, arrived=arrived)

    def take(self, staged: SequenceBatch) -> SequenceBatch:
        """The batch as an agent gets it, usable by what the calling thread puts on its stream from
        now on.
        """
        if self._lane is not None:
            self._lane.await_on_stream(staged.arrived, staged.arrays())
        return replace(staged, windows=None, arrived=None)

    def drain_seconds(self) -> list[float]:
        """What each hand-over since the last call took on the thread that made it."""
        return [self._seconds.popleft() for _ in range(len(self._seconds))]

    def _send(self, lane: Lane, windows: SampledWindows) -> tuple[dict[str, Tensor], Any]:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        if slot.event is not None:
            slot.event.synchronize()  # the last batch of this slot must have left it
        pinned = []
        for index, array in enumerate(windows.columns.values()):
            host = _host_tensor(array)
            kept = slot.pinned.get(index)
            if kept is None or kept.shape != host.shape or kept.dtype != host.dtype:
                kept = slot.pinned[index] = lane.pin(host)
            pinned.append(kept.copy_(host))
        tensors, slot.event = lane.upload(pinned)
        return dict(zip(windows.columns, tensors, strict=True)), slot.event


class _CudaLane:
    """The real one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pin(self, like: Tensor) -> Tensor:
        """See :class:`Lane`."""
        with torch.cuda.device(self._device):
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def upload(self, pinned: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """See :class:`Lane`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.stream):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
            event.record(self.stream)
        return tensors, event

    def await_on_stream(self, event: Any, tensors: Sequence[Tensor]) -> None:
        """See :class:`Lane`."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(stream)


def _host_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the host; it shares memory with an array that may be written."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
