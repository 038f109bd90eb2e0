"""From sampled windows to a batch on the learner's device, off the training thread.

On a CPU the arrays become tensors (read-only ones, from an object store, are copied once). On a GPU
each batch goes through one of two sets of pinned buffers and a copy stream of its own: while one
batch is trained on, the next one is already on its way.

    windows --memcpy--> pinned buffer A or B --copy stream--> device tensors + event
            --the training stream waits for the event-->
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldloom.core.sequence import SequenceBatch
from worldloom_dist.ports import SampledWindows

__all__ = ["Lane", "Staged", "Stager"]

SLOTS = 2


@dataclass(frozen=True)
class Staged:
    """A batch that is on the device, or on its way there.

    Attributes:
        windows: What it was made of, on the host.
        batch: Tensors on the device.
        seconds: What the hand-over took on the thread that made it.
        arrived: Event of the copy stream, None on a CPU.
        tensors: The tensors of ``batch`` that the copy stream wrote.
    """

    windows: SampledWindows
    batch: SequenceBatch
    seconds: float = 0.0
    arrived: Any = None
    tensors: Sequence[Tensor] = ()


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

    def stage(self, windows: SampledWindows) -> Staged:
        """Start bringing windows to the device."""
        started = time.monotonic()
        if self._lane is None:
            batch = SequenceBatch.from_columns(windows.columns, windows.row_ids).map(_host_tensor)
            return Staged(windows, batch, time.monotonic() - started)
        columns, event = self._send(self._lane, windows)
        batch = SequenceBatch.from_columns(columns, windows.row_ids)
        return Staged(windows, batch, time.monotonic() - started, event, list(columns.values()))

    def take(self, staged: Staged) -> SequenceBatch:
        """The batch, usable by what the calling thread puts on its stream from now on."""
        if self._lane is not None:
            self._lane.await_on_stream(staged.arrived, staged.tensors)
        return staged.batch

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
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pin(self, like: Tensor) -> Tensor:
        """See :class:`Lane`."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def upload(self, pinned: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """See :class:`Lane`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
            event.record(self._stream)
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
