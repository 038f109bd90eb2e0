"""Several arrays to a GPU as one page-locked copy, and several results back as another one.

A copy of its own for each array costs more than the bytes do, and one from or to ordinary memory
stops the host until the GPU has caught up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldloom.nn.cuda_streams import recorded_event

__all__ = ["HostTransfer", "Lane"]

ALIGNMENT = 16


class Lane(Protocol):
    """What a transfer needs of CUDA; a test puts a fake in its place."""

    def pin(self, nbytes: int) -> Tensor:
        """Page-locked bytes ``[nbytes]``."""

    def upload(self, pinned: Tensor) -> Tensor:
        """The bytes on the device; the page-locked ones may be written again after
        :meth:`download`.
        """

    def download(self, flat: Tensor, pinned: Tensor) -> None:
        """Copy bytes of the device into page-locked ones, and wait for them."""


class HostTransfer:
    """Moves what a decision reads and leaves; used by one thread, in turns: up, then down.

    Args:
        device: A GPU.
        lane: How to get there.
    """

    def __init__(self, device: torch.device, lane: Lane | None = None) -> None:
        self._lane = lane or _CudaLane(device)
        self._up: Tensor | None = None
        self._down: Tensor | None = None

    def to_device(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Arrays, and tensors that are there already, as tensors on the device, by name."""
        host = {k: np.asarray(v) for k, v in arrays.items() if not isinstance(v, Tensor)}
        starts: dict[str, int] = {}
        total = 0
        for name, array in host.items():
            starts[name] = total
            total += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._up = self._room(self._up, total)
        memory = self._up.numpy()
        for name, array in host.items():
            start = starts[name]
            memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        flat = self._lane.upload(self._up[:total])
        moved = {
            name: flat[starts[name] : starts[name] + array.nbytes]
            .view(_torch_dtype(array.dtype))
            .view(array.shape)
            for name, array in host.items()
        }
        return {name: moved.get(name, value) for name, value in arrays.items()}

    def to_host(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Tensors of the device as arrays of the caller's own, by name."""
        parts = [t.detach().contiguous().view(-1).view(torch.uint8) for t in tensors.values()]
        flat = torch.cat(parts)
        self._down = self._room(self._down, len(flat))
        self._lane.download(flat, self._down[: len(flat)])
        memory = self._down.numpy()
        found = {}
        start = 0
        for (name, tensor), part in zip(tensors.items(), parts, strict=True):
            own = memory[start : start + len(part)].copy()
            found[name] = own.view(_numpy_dtype(tensor.dtype)).reshape(tensor.shape)
            start += len(part)
        return found

    def _room(self, held: Tensor | None, nbytes: int) -> Tensor:
        return held if held is not None and len(held) >= nbytes else self._lane.pin(nbytes)


class _CudaLane:
    """The real one: the calling thread's own stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pin(self, nbytes: int) -> Tensor:
        """See :class:`Lane`."""
        with torch.cuda.device(self._device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, pinned: Tensor) -> Tensor:
        """See :class:`Lane`."""
        return pinned.to(self._device, non_blocking=True)

    def download(self, flat: Tensor, pinned: Tensor) -> None:
        """See :class:`Lane`."""
        pinned.copy_(flat, non_blocking=True)
        recorded_event(self._device).synchronize()


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return np.dtype(torch.empty(0, dtype=dtype).numpy().dtype)
