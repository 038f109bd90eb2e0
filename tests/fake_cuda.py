"""CUDA's bookkeeping without a GPU: which device is a thread's current one, which stream its
current one there, and on which stream an event was recorded. Tensors stay on the CPU.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch


class FakeStream:
    def __init__(self, device: Any = None, *, is_default: bool = False) -> None:
        self.device = _device(device)
        self.is_default = is_default
        self.waits: list[Any] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.waits.append(other)

    def wait_event(self, event: FakeEvent) -> None:
        self.waits.append(event)

    def synchronize(self) -> None:
        pass


class FakeEvent:
    def __init__(self) -> None:
        self.stream: FakeStream | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream or FakeRuntime.now.stream()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        assert self.stream is not None, "an event that was never recorded"


class _Within:
    """A context that puts something back."""

    def __init__(self, set_to: Any, enter: Any, leave: Any) -> None:
        self._set_to = set_to
        self._enter = enter
        self._leave = leave

    def __enter__(self) -> None:
        self._before = self._enter(self._set_to)

    def __exit__(self, *error: object) -> None:
        self._leave(self._before)


class FakeRuntime:
    """Current device and streams, per thread.

    Attributes:
        pinned: Current device of every page-locked allocation.
        graph_fails: Raised when the next recording ends.
    """

    now: FakeRuntime

    def __init__(self) -> None:
        self._local = threading.local()
        self.pinned: list[int] = []
        self.graph_fails: Exception | None = None

    @property
    def device(self) -> int:
        return getattr(self._local, "device", 0)

    def set_device(self, device: Any) -> None:
        self._local.device = _device(device).index

    def streams(self) -> dict[int, FakeStream]:
        if not hasattr(self._local, "streams"):
            self._local.streams = {}
        return self._local.streams

    def stream(self, device: Any = None) -> FakeStream:
        index = self.device if device is None else _device(device).index
        return self.streams().setdefault(index, FakeStream(index, is_default=True))

    def swap_stream(self, stream: FakeStream) -> tuple[int, dict[int, FakeStream]]:
        self.stream(stream.device)
        before = (self.device, dict(self.streams()))
        self.set_device(stream.device)
        self.streams()[stream.device.index] = stream
        return before

    def restore(self, before: tuple[int, dict[int, FakeStream]]) -> None:
        self.set_device(before[0])
        self.streams().update(before[1])

    def swap_device(self, device: Any) -> int:
        before = self.device
        self.set_device(device)
        return before


class FakeGraph:
    """Leaves the thread on its stream when the recording cannot be ended, as torch does."""

    def __init__(self, graph: Any, pool: Any, *, stream: FakeStream, capture_error_mode: str):
        assert capture_error_mode == "thread_local"
        self._stream = stream

    def __enter__(self) -> None:
        self._before = FakeRuntime.now.swap_stream(self._stream)

    def __exit__(self, *error: object) -> None:
        if FakeRuntime.now.graph_fails is not None:
            raise FakeRuntime.now.graph_fails
        FakeRuntime.now.restore(self._before)


def _device(device: Any) -> torch.device:
    if isinstance(device, int):
        return torch.device("cuda", device)
    if device is None:
        return torch.device("cuda", FakeRuntime.now.device)
    found = torch.device(device)
    return torch.device("cuda", found.index if found.index is not None else FakeRuntime.now.device)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """Put a fresh runtime in CUDA's place for one test."""
    runtime = FakeRuntime.now = FakeRuntime()
    real = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if pin_memory:
            runtime.pinned.append(runtime.device)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    cuda = torch.cuda
    for name, value in {
        "Stream": FakeStream,
        "Event": FakeEvent,
        "CUDAGraph": lambda: None,
        "graph": FakeGraph,
        "set_device": runtime.set_device,
        "current_device": lambda: runtime.device,
        "current_stream": runtime.stream,
        "synchronize": lambda device=None: None,
        "stream": lambda one: _Within(one, runtime.swap_stream, runtime.restore),
        "device": lambda one: _Within(one, runtime.swap_device, runtime.set_device),
    }.items():
        monkeypatch.setattr(cuda, name, value)
    return runtime
