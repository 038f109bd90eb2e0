"""Work recorded once as a CUDA graph and replayed: one launch instead of thousands, so that no one
waits for the host.

What is recorded reads and writes fixed addresses: static shapes, no value read back, no copy
between host and device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "Recorder"]


class Recorder(Protocol):
    """What capturing needs of CUDA, for one graph; a test puts a fake in its place."""

    def warm(self, work: Callable[[], Any]) -> Any:
        """Run eagerly on the stream that capturing will use."""

    def capture(self, work: Callable[[], Any]) -> Any:
        """Record the work without running it; returns what it returned, whose tensors every replay
        fills again.
        """

    def replay(self) -> None:
        """Run what was recorded."""


class CudaRecorder:
    """The real one.

    Args:
        device: Where the work runs.
        generators: That the work draws from; replays go on in their sequences.
        pool: Memory shared with other graphs (``torch.cuda.graph_pool_handle()``), of which one
            runs at a time and whose results are taken before the next one runs; None for memory of
            its own.
    """

    def __init__(
        self, device: torch.device, generators: Sequence[torch.Generator] = (), pool: Any = None
    ) -> None:
        self._device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool
        for generator in generators:
            self._graph.register_generator_state(generator)

    def warm(self, work: Callable[[], Any]) -> Any:
        """See :class:`Recorder`."""
        current = torch.cuda.current_stream(self._device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def capture(self, work: Callable[[], Any]) -> Any:
        """See :class:`Recorder`.

        When it fails, the thread is back on the stream that it was on, and no more than that:
        memory and generators of the graph stay as if it were still being recorded.
        """
        torch.cuda.synchronize(self._device)
        recording = torch.cuda.graph(
            self._graph, self._pool, stream=self.stream, capture_error_mode="thread_local"
        )
        # the inner context stays on its own stream when the recording cannot be ended
        with torch.cuda.stream(torch.cuda.current_stream(self._device)), recording:
            return work()

    def replay(self) -> None:
        """See :class:`Recorder`."""
        self._graph.replay()
