"""The rows of one env on their way to replay: gathered into chunks, sent one after the other by a
task, counted when they are acknowledged.

Every chunk says in its header which steps of the client its rows are, and who chose their actions.
So the gateway that takes a session over after a death can ask the shard how far it got.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import Chunk, PolicyVersion
from worldloom_client.wire import SOURCES
from worldloom_dist.actors.stream_writer import ChunkBuilder
from worldloom_dist.ports import CHUNK_SOURCES, FIRST_STEP, FencedError

__all__ = ["AGAIN_S", "POLICY", "Append", "Backlog", "StreamSender"]

logger = logging.getLogger(__name__)

Append = Callable[[Chunk], Awaitable[Any]]
"""Stores a chunk; answers False when it had been stored before."""

AGAIN_S = 0.2
"""Pause before a chunk is sent again whose shard is away."""
POLICY = SOURCES["policy"]


class _Sent(NamedTuple):
    chunk: Chunk
    sources: list[int]


class Backlog:
    """Rows of one session that wait, open ones included, over all of its envs."""

    def __init__(self) -> None:
        self.rows = 0


class StreamSender:
    """The writing end of one env; lives on an event loop.

    Args:
        builder: Packs its rows.
        append: Sends a chunk and waits until it is stored. A ``StateError`` means that it is to be
            sent again, ``FencedError`` that another session has the stream's env now.
        first_step: The client's step that the stream begins at.
        on_stored: Told the sources of rows that were stored.
        backlog: Counts the rows that wait.

    Attributes:
        stored: Steps before this one are done with: stored, or left out at the client's wish.
        is_fenced: True when the rows go to another session.
    """

    def __init__(
        self,
        builder: ChunkBuilder,
        append: Append,
        *,
        first_step: int = 0,
        on_stored: Callable[[Sequence[int]], object] = lambda _: None,
        backlog: Backlog | None = None,
    ) -> None:
        self.stored = first_step
        self.is_fenced = False
        self._builder = builder
        self._append = append
        self._on_stored = on_stored
        self._backlog = backlog or Backlog()
        self._step = first_step
        self._first_step = first_step
        self._sources: list[int] = []
        self._queue: deque[_Sent] = deque()
        self._stored_after: deque[int] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        index: int,
        step: int,
        version: PolicyVersion,
        source: int,
        *,
        is_first: bool,
        is_last: bool,
        carry_reset: bool,
    ) -> None:
        """Add the row ``columns[name][index]``, which is the client's step ``step``."""
        if step != self._step or self._builder.must_close(version, is_first=is_first):
            self.close_chunk()
        if self._builder.num_rows == 0:
            self._first_step = step
        self._step = step + 1
        self._sources.append(source)
        self._backlog.rows += 1
        if self._builder.add(columns, index, version, is_last=is_last, carry_reset=carry_reset):
            self.close_chunk()

    def extend(
        self,
        columns: Mapping[str, np.ndarray],
        count: int,
        step: int,
        version: PolicyVersion,
        since_s: float,
    ) -> None:
        """Add consecutive rows in mid-episode that the policy chose.

        Args:
            columns: Per column ``[count, ...]``.
            count: How many.
            step: The client's step of the first one.
            version: Weights that chose.
            since_s: When the first one came, by the builder's clock.
        """
        place = 0
        while place < count:
            if step != self._step or self._builder.must_close(version, is_first=False):
                self.close_chunk()
            if self._builder.num_rows == 0:
                self._first_step = step
            taken = self._builder.extend(columns, place, count, version, since_s)
            place += taken
            step += taken
            self._step = step
            self._sources += [POLICY] * taken
            self._backlog.rows += taken
            if self._builder.is_complete:
                self.close_chunk()

    def leave_out(self, step: int) -> None:
        """The row of ``step`` is none of replay's."""
        self.close_chunk()
        self._step = step + 1
        if self._queue:
            self._stored_after[-1] = step + 1
        else:
            self.stored = step + 1

    def close_if_old(self) -> None:
        """Send the open chunk if its time has come."""
        if self._builder.is_old:
            self.close_chunk()

    def close_chunk(self) -> None:
        """Send what is open."""
        if not self._builder.num_rows:
            return
        notes: dict[str, Any] = {FIRST_STEP: self._first_step}
        if set(self._sources) != {POLICY}:
            notes[CHUNK_SOURCES] = self._sources
        self._stored_after.append(self._step)
        self._queue.append(_Sent(self._builder.take(notes), self._sources))
        self._sources = []
        if self._task is None:
            self._task = asyncio.ensure_future(self._send())

    async def drained(self) -> None:
        """Returns when everything is stored, or goes to another session."""
        self.close_chunk()
        while (task := self._task) is not None:
            await asyncio.wait([task])
            if self._task is task:  # cancelled before it began
                self._task = None
            if not task.cancelled():
                task.result()

    def cancel(self) -> None:
        """Stop sending; what is not stored is lost."""
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        try:
            while self._queue:
                try:
                    await self._append(self._queue[0].chunk)
                except FencedError:
                    self.is_fenced = True
                    self._backlog.rows -= sum(sent.chunk.num_rows for sent in self._queue)
                    self._queue.clear()
                    self._stored_after.clear()
                    return
                except StateError as error:
                    logger.warning("%s; chunk of %s is sent again", error, self._builder.stream)
                    await asyncio.sleep(AGAIN_S)
                    continue
                sent = self._queue.popleft()
                self.stored = self._stored_after.popleft()
                self._backlog.rows -= sent.chunk.num_rows
                self._on_stored(sent.sources)
        finally:
            self._task = None
