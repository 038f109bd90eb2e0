"""What a shard knows: its rows, where every row went, and which chunks it has seen. No lock, no
disk: ``ReplayShard`` adds both.

The same object takes chunks from writers and, after a restart, from the journal (``Recovery``), so
both leave the same state.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.sequence import Chunk, StreamId, agent_steps
from worldloom.core.specs import ArraySpec
from worldloom.data.chunk_runs import ChunkRun
from worldloom.data.codec import EncodedColumn, notes_of, split_rows
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom_dist.ports import (
    CHUNK_SOURCES,
    FIRST_GATEWAY_SLOT,
    FIRST_STEP,
    EpisodeOverError,
    RowCounters,
)
from worldloom_dist.replay.records import StoredChunk

__all__ = ["GapTable", "ShardCounters", "ShardRows"]

GATEWAY_STREAMS = 65_536
"""Of which it is known how far they got."""
Place = tuple[int, int, int]
"""Segment, offset and size of a chunk's record in the journal."""


class GapTable:
    """Which chunks of a stream never came: with the next expected number this tells a duplicate
    from a chunk that is late. It holds nothing of a stream without gaps.
    """

    def __init__(self) -> None:
        self._missing: dict[StreamId, list[tuple[int, int]]] = {}

    def is_new(self, stream: StreamId, seq: int, expected: int) -> bool:
        """True when chunk ``seq`` was never stored, ``expected`` being the stream's next number."""
        return seq >= expected or any(
            start <= seq < stop for start, stop in self._missing.get(stream, ())
        )

    def stored(self, stream: StreamId, seq: int, expected: int) -> None:
        """Chunk ``seq`` was stored: it opens a gap, fills part of one, or is the expected one."""
        if seq > expected:
            self._missing.setdefault(stream, []).append((expected, seq))
        elif seq < expected:
            parts = [
                part for start, stop in self._missing[stream] for part in _without(start, stop, seq)
            ]
            self._missing[stream] = parts
            if not parts:
                del self._missing[stream]

    def state(self) -> list[list[Any]]:
        """JSON-ready."""
        return [[*stream, ranges] for stream, ranges in self._missing.items()]

    def load(self, state: Iterable[Sequence[Any]]) -> None:
        """Inverse of :meth:`state`."""
        self._missing = {
            StreamId(*entry[:3]): [(start, stop) for start, stop in entry[3]] for entry in state
        }


@dataclass(slots=True)
class ShardCounters:
    """What a shard counts and its buffer cannot know; restored from journal heads.

    Attributes:
        agent_steps: Decisions inserted.
        lost: Acknowledged rows that the disk does not have.
        duplicate: Rows that came again and were ignored.
        evicted: Rows that made room.
    """

    agent_steps: int = 0
    lost: int = 0
    duplicate: int = 0
    evicted: int = 0


class ShardRows:
    """Rows, counters, and the table of chunks seen.

    Args:
        make_buffer: Makes the empty buffer.
        columns: What every row has.

    Attributes:
        buffer: The rows.
        counters: What the buffer cannot know.
        gaps: Chunks that never came.
        segment_rows: Rows inserted before each segment of the journal.
        next_steps: Of the newest streams of gateways: the client's step after the newest row.
    """

    def __init__(
        self, make_buffer: Callable[[], SequenceBuffer], columns: Mapping[str, ArraySpec]
    ) -> None:
        self.buffer = make_buffer()
        self._columns = columns
        self.counters = ShardCounters()
        self.gaps = GapTable()
        self.segment_rows: dict[int, int] = {}
        self.next_steps: OrderedDict[StreamId, int] = OrderedDict()

    def split(self, chunk: Chunk) -> dict[str, EncodedColumn]:
        """The columns of a chunk, still encoded, after comparing them with what it says of
        itself.

        Raises:
            CheckpointError: If the payload is damaged.
            ShapeMismatchError: If the rows have another layout or other counts, or are more than
                the capacity.
        """
        rows = split_rows(chunk.payload, self._columns)
        most = self.buffer.capacity_rows
        first = rows["is_first"].decode()
        counts = (len(first), 0 if chunk.stream.is_imported else agent_steps(first))
        if counts != (chunk.num_rows, chunk.num_agent_steps) or not 0 < chunk.num_rows <= most:
            name = f"rows and agent steps of chunk {chunk.stream}/{chunk.seq} (at most {most} rows)"
            raise ShapeMismatchError(name, (chunk.num_rows, chunk.num_agent_steps), counts)
        return rows

    def is_new(self, chunk: Chunk) -> bool:
        """True for a chunk that was never stored."""
        return self.gaps.is_new(chunk.stream, chunk.seq, self.buffer.next_seq(chunk.stream))

    def check_episode(self, chunk: Chunk, rows: Mapping[str, EncodedColumn]) -> None:
        """Whether a new chunk of a client may follow what is stored of its stream.

        Raises:
            EpisodeOverError: If not; a window would join two episodes as if they were one.
        """
        if (
            _is_of_client(chunk.stream)
            and chunk.seq == self.buffer.next_seq(chunk.stream)
            and self.buffer.has_ended(chunk.stream)
            and not rows["is_first"].decode()[0]
        ):
            raise EpisodeOverError(
                f"column 'is_first': chunk {chunk.seq} goes on with an episode that ended in "
                f"chunk {chunk.seq - 1}"
            )

    def to_record(self, chunk: Chunk, inserted_s: float) -> list[bytes | memoryview]:
        """The journal's record of a new chunk."""
        return StoredChunk(
            chunk, self.buffer.next_row, self.counters.agent_steps, inserted_s
        ).pack()

    def store(
        self,
        chunk: Chunk,
        rows: Mapping[str, EncodedColumn],
        inserted_s: float,
        place: Place | None,
    ) -> None:
        """Take a new chunk; ``place`` is where the journal has it."""
        self.gaps.stored(chunk.stream, chunk.seq, self.buffer.next_seq(chunk.stream))
        notes = notes_of(chunk.payload) if _is_of_client(chunk.stream) else {}
        self.counters.evicted += self.buffer.append(
            chunk.stream,
            chunk.seq,
            rows,
            version=chunk.version.update,
            inserted_s=inserted_s,
            place=place,
            sources=notes.get(CHUNK_SOURCES),
        )
        self.counters.agent_steps += chunk.num_agent_steps
        if FIRST_STEP in notes:
            self._note_step(chunk, int(notes[FIRST_STEP]))

    def store_run(self, run: ChunkRun) -> None:
        """As :meth:`store` for all chunks of a run: new ones, each the next of its stream."""
        self.counters.evicted += self.buffer.append_run(run)
        self.counters.agent_steps += sum(chunk.agent_steps for chunk in run.chunks)

    def _note_step(self, chunk: Chunk, step: int) -> None:
        known = self.next_steps.pop(chunk.stream, 0)
        self.next_steps[chunk.stream] = max(known, step + chunk.num_rows)
        while len(self.next_steps) > GATEWAY_STREAMS:
            self.next_steps.popitem(last=False)

    def row_counters(self) -> RowCounters:
        """Where every row went; each number is counted, none is a remainder."""
        counters = self.counters
        return RowCounters(
            inserted=self.buffer.next_row,
            stored=len(self.buffer),
            evicted=counters.evicted,
            lost_acked=counters.lost,
            duplicate=counters.duplicate,
            agent_steps=counters.agent_steps,
            payload_bytes=self.buffer.nbytes,
        )

    def head(self) -> bytes:
        """Everything that reading the journal from here needs to know of the rows before."""
        head = {
            "next_row": self.buffer.next_row,
            "agent_steps": self.counters.agent_steps,
            "lost": self.counters.lost,
            "duplicate": self.counters.duplicate,
            "first_row": self.buffer.first_row,
            "holes": self.buffer.holes,
            "online_queued": self.buffer.online_queued,
            "streams": [[*stream, *position] for stream, position in self.buffer.streams().items()],
            "gaps": self.gaps.state(),
        }
        return json.dumps(head).encode()

    def oldest_needed(self) -> int:
        """The segment that holds the oldest stored row."""
        reaching = [
            number for number, row in self.segment_rows.items() if row <= self.buffer.first_row
        ]
        return max(reaching, default=min(self.segment_rows))

    def mark_lost(self, acknowledged: RowCounters) -> int:
        """Count rows that someone saw acknowledged and that are not here as lost; returns how many
        are new.
        """
        before = self.row_counters()
        unknown = acknowledged.inserted - before.inserted
        if unknown <= 0:
            return 0
        # stored or lost when they were acknowledged, and not among the lost that are known here
        kept = acknowledged.inserted - acknowledged.evicted
        newly = max(0, min(unknown, kept - min(before.lost_acked, acknowledged.lost_acked)))
        self.skip_to(
            acknowledged.inserted, max(self.counters.agent_steps, acknowledged.agent_steps)
        )
        self.counters.lost += newly
        self.counters.evicted += unknown - newly
        return newly

    def skip_to(self, next_row: int, agent_steps: int) -> None:
        """Account for lost rows: up to row ``next_row``, and up to that many agent steps."""
        self.counters.evicted += self.buffer.skip(next_row - self.buffer.next_row)
        self.counters.agent_steps = agent_steps


def _is_of_client(stream: StreamId) -> bool:
    return stream.slot >= FIRST_GATEWAY_SLOT and not stream.is_imported


def _without(start: int, stop: int, seq: int) -> list[tuple[int, int]]:
    """The range [start, stop) with ``seq`` taken out."""
    if not start <= seq < stop:
        return [(start, stop)]
    return [(a, b) for a, b in ((start, seq), (seq + 1, stop)) if a < b]
