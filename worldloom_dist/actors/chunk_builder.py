"""Gathers the rows of one stream into chunks: the rule by which a chunk is closed, and nothing of
how it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import make_chunk

__all__ = ["ChunkBuilder", "Encoder"]

Encoder = Callable[[StreamId, int, PolicyVersion, Mapping[str, np.ndarray], Sequence[int]], Chunk]


class ChunkBuilder:
    """The open chunk of one stream; used by one thread.

    Args:
        stream: Which stream.
        columns: Columns of a row; their buffers are allocated once.
        chunk_rows: Rows of a full chunk.
        max_age_s: An open chunk is old when its first row is; infinite for never.
        clock: Monotonic seconds.
        encode: Makes a chunk of rows, some of them marked.

    Attributes:
        seq: Number of the next chunk.
        num_rows: Rows of the open one.

    Raises:
        ConfigurationError: If ``chunk_rows`` is not positive.
    """

    def __init__(
        self,
        stream: StreamId,
        columns: Mapping[str, ArraySpec],
        *,
        chunk_rows: int = 64,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        encode: Encoder = make_chunk,
    ) -> None:
        if chunk_rows < 1:
            raise ConfigurationError(f"actors.chunk_rows must be >= 1, got {chunk_rows}")
        self.stream = stream
        self.seq = 0
        self.num_rows = 0
        self._encode = encode
        self._clock = clock
        self._chunk_rows = chunk_rows
        self._max_age_s = max_age_s
        self._buffers = {name: spec.zeros(chunk_rows) for name, spec in columns.items()}
        self._pairs = list(self._buffers.items())
        self._opened_s = 0.0
        self._carry_resets: list[int] = []
        self._version: PolicyVersion = NO_POLICY

    @property
    def is_old(self) -> bool:
        """True when the open chunk is to be closed for its age."""
        return self.num_rows > 0 and self._clock() - self._opened_s >= self._max_age_s

    def must_close(self, version: PolicyVersion, *, is_first: bool) -> bool:
        """True when such a row cannot join the open chunk."""
        return self.num_rows > 0 and (version != self._version or is_first)

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        index: int,
        version: PolicyVersion,
        *,
        is_last: bool,
        carry_reset: bool = False,
    ) -> bool:
        """Add the row ``columns[name][index]`` of every column; the values are copied.

        Returns:
            True when the chunk is complete now: full, old, or at the end of an episode.
        """
        now = self._clock()
        if self.num_rows == 0:
            self._opened_s = now
            self._version = version
        row = self.num_rows
        for name, buffer in self._pairs:
            buffer[row] = columns[name][index]
        if carry_reset:
            self._carry_resets.append(row)
        self.num_rows = row + 1
        return (
            self.num_rows == self._chunk_rows or is_last or now - self._opened_s >= self._max_age_s
        )

    def take(self) -> Chunk:
        """The open chunk, which is closed now; there must be one."""
        rows = {name: buffer[: self.num_rows] for name, buffer in self._buffers.items()}
        chunk = self._encode(self.stream, self.seq, self._version, rows, self._carry_resets)
        self.restart(self.seq + 1)
        return chunk

    def restart(self, seq: int) -> None:
        """Forget what is open; the next chunk has the number ``seq``."""
        self.seq = seq
        self.num_rows = 0
        self._carry_resets = []
