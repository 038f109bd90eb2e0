"""Packs the rows of one env stream into chunks and hands them over, one at a time, each
acknowledged before the next.

A chunk is closed when it is full, too old, at the end of an episode, before a reset row and where
the policy version changes. Where ``ReplayWriter.append`` returns before the acknowledgement, rows
are added meanwhile, and the stream's next chunk waits for it; that is the only back-pressure, and
nothing is ever dropped here. If sending or waiting raises, the chunk is kept under its number and
sent again, before anything newer, by the next call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import ReplayWriter

__all__ = ["ChunkBuilder", "Encoder", "StreamWriter"]

T = TypeVar("T")
Encoder = Callable[..., Chunk]
"""Makes a chunk of what :func:`worldloom.data.codec.make_chunk` takes."""


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

    @property
    def is_complete(self) -> bool:
        """True when the open chunk is full or old."""
        return self.num_rows == self._chunk_rows or self.is_old

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

    def extend(
        self,
        columns: Mapping[str, np.ndarray],
        first: int,
        last: int,
        version: PolicyVersion,
        since_s: float,
    ) -> int:
        """Add the rows ``columns[name][first:last]`` in mid-episode, as many as there is room for.

        Args:
            columns: Per column ``[rows, ...]``.
            first, last: Which of them.
            version: Weights that chose their actions.
            since_s: When the first of them came.

        Returns:
            How many were added; the chunk may be complete then.
        """
        if self.num_rows == 0:
            self._opened_s = since_s
            self._version = version
        begin = self.num_rows
        taken = min(last - first, self._chunk_rows - begin)
        for name, buffer in self._pairs:
            buffer[begin : begin + taken] = columns[name][first : first + taken]
        self.num_rows = begin + taken
        return taken

    def take(self, *notes: Mapping[str, Any]) -> Chunk:
        """The open chunk, which is closed now; there must be one.

        Args:
            notes: At most one: what its header says of the rows, see ``codec.notes_of``.
        """
        rows = {name: buffer[: self.num_rows] for name, buffer in self._buffers.items()}
        chunk = self._encode(self.stream, self.seq, self._version, rows, self._carry_resets, *notes)
        self.restart(self.seq + 1)
        return chunk

    def restart(self, seq: int) -> None:
        """Forget what is open; the next chunk has the number ``seq``."""
        self.seq = seq
        self.num_rows = 0
        self._carry_resets = []


class StreamWriter:
    """The writing end of one stream; used by one thread.

    Args:
        stream: Which stream.
        columns: Columns of a row; their buffers are allocated once.
        writer: Where chunks go.
        chunk_rows: Rows of a full chunk.
        max_age_s: An open chunk is sent when its first row is this old; infinite for never.
        clock: Monotonic seconds.
        encode: Makes a chunk of rows, some of them marked.

    Raises:
        ConfigurationError: If ``chunk_rows`` is not positive.
    """

    def __init__(
        self,
        stream: StreamId,
        columns: Mapping[str, ArraySpec],
        writer: ReplayWriter,
        *,
        chunk_rows: int = 64,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        encode: Encoder = make_chunk,
    ) -> None:
        self.stream = stream
        self._writer = writer
        self._clock = clock
        self._builder = ChunkBuilder(
            stream,
            columns,
            chunk_rows=chunk_rows,
            max_age_s=max_age_s,
            clock=clock,
            encode=encode,
        )
        self._pending: Chunk | None = None
        # waits for the pending chunk; None when that has to be sent again
        self._answer: Callable[[], None] | None = None
        self.acked_rows = 0
        self.acked_steps = 0
        self.blocked_s = 0.0

    @property
    def open_rows(self) -> int:
        """Rows that would be lost if this process died now."""
        pending = self._pending  # once, because another thread may ask
        return self._builder.num_rows + (pending.num_rows if pending else 0)

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        index: int,
        version: PolicyVersion,
        *,
        is_first: bool,
        is_last: bool,
        carry_reset: bool = False,
    ) -> None:
        """Add the row ``columns[name][index]`` of every column; the values are copied.

        Args:
            columns: Per column ``[N, ...]``, all columns of a row.
            index: Which of the N rows.
            version: Weights that chose its action.
            is_first, is_last: What its flags say, as plain values.
            carry_reset: Mark it: the policy that chose its action had lost the carry (see
                ``codec.carry_resets_of``).
        """
        if self._pending is not None and self._answer is None:
            self._collect_acknowledged()
        if self._builder.must_close(version, is_first=is_first):
            self.send()
        if self._builder.add(columns, index, version, is_last=is_last, carry_reset=carry_reset):
            self.send()

    def flush_if_old(self) -> None:
        """Send the open chunk if its time has come (an env may be waiting while its rows
        grow old).
        """
        if self._builder.is_old:
            self.send()

    def send(self) -> None:
        """Send the open chunk, once the one before it is acknowledged."""
        self._collect_acknowledged()
        if self._builder.num_rows:
            self._pending = self._builder.take()
            self._append(self._pending)

    def flush(self) -> None:
        """Send everything; returns when it is acknowledged."""
        self.send()
        self._collect_acknowledged()

    def state(self) -> dict[str, int]:
        """What a checkpoint needs, taken when nothing is open."""
        return {"seq": self._builder.seq, "acked_rows": self.acked_rows}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of :meth:`state`; what is open is forgotten."""
        self._builder.restart(int(state["seq"]))
        self.acked_rows = int(state["acked_rows"])
        self.acked_steps = 0
        self._pending = None
        self._answer = None

    def _collect_acknowledged(self) -> None:
        """See what was sent acknowledged; sends it again first if that failed."""
        if self._pending is not None and self._answer is None:
            self._append(self._pending)
        if self._answer is not None:
            answer = self._answer
            self._answer = None
            self._timed(answer)
            self._acknowledged()

    def _append(self, chunk: Chunk) -> None:
        self._answer = self._timed(partial(self._writer.append, chunk))
        if self._answer is None:
            self._acknowledged()

    def _acknowledged(self) -> None:
        assert self._pending is not None
        self.acked_rows += self._pending.num_rows
        self.acked_steps += self._pending.num_agent_steps
        self._pending = None

    def _timed(self, wait: Callable[[], T]) -> T:
        started = self._clock()
        result = wait()
        self.blocked_s += self._clock() - started
        return result
