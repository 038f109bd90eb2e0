"""Is a shard's folder whole? Every checksum and counter of its journal and of the files beside it;
nothing is changed.

Works beside a live writer too. Marks are read before the journal, which then reaches at least as
far as they do; what a snapshot needs may be replaced meanwhile, so a complaint counts only if the
snapshot is still there afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.sequence import FLAGS, SequenceBatch, StreamId, agent_steps
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import carry_resets_of, split_rows
from worldloom_dist.replay.fences import Fences
from worldloom_dist.replay.history import stored_columns, stored_identity
from worldloom_dist.replay.journal import HEAD, JournalDamage, Record, read_journal
from worldloom_dist.replay.records import (
    CHUNK,
    DUPLICATE,
    LOST,
    Repeated,
    StoredChunk,
    shard_identity,
    unpack_head,
)
from worldloom_dist.replay.recovery import missing_before
from worldloom_dist.replay.seams import StreamLives
from worldloom_dist.replay.shard_rows import GapTable
from worldloom_dist.replay.snapshots import ShardSnapshot, SnapshotStore

__all__ = ["ShardFindings", "verify_shard"]


@dataclass(slots=True)
class ShardFindings:
    """What a shard's folder holds.

    Attributes:
        chunks, rows: Intact ones on disk.
        inserted, agent_steps, duplicate, lost: The counters at the end of the journal.
        carry_resets: Rows on disk that an agent acted which had just lost its carry
            (``codec.carry_resets_of``).
        run_rows: Rows inserted up to the last one that did not come from a file; those after it may
            have been imported later.
        torn_bytes: An unfinished record at the end.
        index: Which shard the folder says it is; None if it does not say.
        columns: What every row has.
        spans: Rows on disk that follow each other, as first row and the one after the last.
        problems: One sentence each; empty when the folder is whole.
    """

    chunks: int = 0
    rows: int = 0
    inserted: int = 0
    agent_steps: int = 0
    duplicate: int = 0
    lost: int = 0
    carry_resets: int = 0
    run_rows: int = 0
    torn_bytes: int = 0
    index: int | None = None
    columns: dict[str, ArraySpec] = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def newest(self, capacity: int) -> int:
        """Rows on disk that are among the newest ``capacity`` ones, which is what a shard of that
        capacity keeps.
        """
        oldest = self.inserted - capacity
        return sum(max(0, stop - max(first, oldest)) for first, stop in self.spans)

    def add_rows(self, first: int, stop: int) -> None:
        """Note a chunk that is on disk."""
        self.chunks = self.chunks + 1
        self.rows = self.rows + stop - first
        if self.spans and self.spans[-1][1] == first:
            first = self.spans.pop()[0]
        self.spans.append((first, stop))


def verify_shard(folder: Path) -> ShardFindings:
    """Check one shard's folder."""
    try:
        identity = stored_identity(folder)
        columns = stored_columns(folder)
        snapshots = _snapshots(folder)
        Fences(folder)
    except CheckpointError as error:
        return ShardFindings(problems=[str(error)])
    damage = JournalDamage()
    reader = _Reader(folder, columns, snapshots)
    evicted = 0
    reader.found.index = identity.get("index")
    try:
        for record in read_journal(folder, damage):
            if damage.evicted_segments > evicted:
                reader.begin_anew()
            evicted = damage.evicted_segments
            try:
                with reading(f"segment {record.segment}", "a record is none that a shard writes"):
                    reader.take(record)
            except CheckpointError as error:
                reader.found.problems.append(f"{folder}: {error}")
    except CheckpointError as error:  # a segment that is no file
        reader.found.problems.append(str(error))
    if not evicted:
        reader.compare_ends()
    found = reader.found
    found.torn_bytes = damage.torn_bytes
    if damage.corrupt_bytes:
        found.problems.append(f"{folder}: {damage.corrupt_bytes} bytes of the journal are damaged")
    if identity != shard_identity(identity.get("index"), columns):
        found.problems.append(
            f"{folder / 'shard.json'}: was changed, or written by another version"
        )
    found.problems += _mark_problems(folder, columns, found.inserted, reader.complaints())
    return found


class _Reader:
    """Follows the counters of a journal record by record.

    Args:
        folder: For the messages.
        columns: What every row must have.
        snapshots: Cuts that the journal must hold.
    """

    def __init__(
        self, folder: Path, columns: dict[str, ArraySpec], snapshots: Sequence[ShardSnapshot]
    ) -> None:
        self.found = ShardFindings(columns=columns)
        self._folder = folder
        self._columns = columns
        self._snapshots = snapshots
        self._rows_at = {(snapshot.segment, snapshot.offset): -1 for snapshot in snapshots}
        self._first_segment = -1
        self.begin_anew()

    def begin_anew(self) -> None:
        """The records before were evicted while they were read: the next head says where it goes
        on.
        """
        self._expected: dict[StreamId, int] = {}
        self._gaps = GapTable()
        self._has_begun = False
        self._first_row: int | None = None
        self._newest: dict[str, Any] = {}
        self._lives = StreamLives()

    def take(self, record: Record) -> None:
        """Check one record."""
        if self._first_segment < 0:
            self._first_segment = record.segment
        if record.kind == HEAD:
            self._head(unpack_head(record))
        elif record.kind == LOST:
            counters = unpack_head(record)
            self.found.inserted = counters["next_row"]
            self.found.agent_steps = counters["agent_steps"]
            self.found.lost = counters["lost"]
            self.found.run_rows = self.found.inserted
            self._newest = counters
        elif record.kind == DUPLICATE:
            repeated = Repeated.unpack(record.payload)
            self.found.duplicate += repeated.rows
            self._note(self._lives.repeated(repeated))
        elif record.kind == CHUNK:
            self._chunk(StoredChunk.unpack(record.payload))
        else:
            self._problem(f"segment {record.segment} has a record of unknown kind {record.kind}")
        if not self._has_begun:
            self._first_row = self.found.inserted if record.kind == HEAD else None
        self._has_begun = True
        place = (record.segment, record.offset + len(record.payload))
        if place in self._rows_at:
            self._rows_at[place] = self.found.inserted

    def compare_ends(self) -> None:
        """Compare where the records begin with what the newest head says was stored."""
        missing = 0 if self._first_row is None else missing_before(self._first_row, self._newest)
        if missing:
            self._problem(
                f"{missing} rows before row {self._first_row} are missing: the "
                "segments that held them are gone"
            )

    def complaints(self) -> Iterator[tuple[ShardSnapshot, str]]:
        """Each snapshot with what the journal says against it, at the end of the journal; empty
        when nothing.
        """
        end = self.found.inserted
        for snapshot in self._snapshots:
            rows = self._rows_at[snapshot.segment, snapshot.offset]
            if snapshot.next_row > end:
                yield (
                    snapshot,
                    f"a snapshot stands at row {snapshot.next_row}, and the journal "
                    f"ends at row {end}",
                )
            elif rows != snapshot.next_row:
                where = "no record ends there" if rows < 0 else f"the journal has row {rows} there"
                yield (
                    snapshot,
                    f"a snapshot stands at row {snapshot.next_row}, segment {snapshot.segment}, "
                    f"byte {snapshot.offset}, and {where}",
                )
            elif snapshot.oldest_segment < self._first_segment:
                yield (
                    snapshot,
                    f"a snapshot needs segment {snapshot.oldest_segment}, and the journal "
                    f"begins with {self._first_segment}",
                )
            else:
                yield snapshot, ""

    def _head(self, head: dict[str, Any]) -> None:
        found = self.found
        if self._has_begun:
            for name, mine in (
                ("next_row", found.inserted),
                ("agent_steps", found.agent_steps),
                ("duplicate", found.duplicate),
                ("lost", found.lost),
            ):
                if head[name] != mine:
                    self._problem(
                        f"a segment begins with {name} {head[name]}, and the records "
                        f"before it give {mine}"
                    )
        self._newest = head
        found.inserted = head["next_row"]
        found.agent_steps = head["agent_steps"]
        found.duplicate = head["duplicate"]
        found.lost = head["lost"]
        self._expected = {StreamId(*entry[:3]): entry[3] for entry in head["streams"]}
        self._gaps.load(head["gaps"])

    def _chunk(self, stored: StoredChunk) -> None:
        chunk = stored.chunk
        found = self.found
        name = f"chunk {chunk.stream}/{chunk.seq}"
        stands_at = (stored.first_row, stored.agent_steps_before)
        if stands_at != (found.inserted, found.agent_steps) and (self._has_begun or found.inserted):
            self._problem(
                f"{name} stands at row {stored.first_row} and agent step "
                f"{stored.agent_steps_before}, and the records before it end at "
                f"row {found.inserted} and agent step {found.agent_steps}"
            )
        expected = self._expected.get(chunk.stream, 0)
        if self._gaps.is_new(chunk.stream, chunk.seq, expected):
            self._gaps.stored(chunk.stream, chunk.seq, expected)
        else:
            self._problem(f"{name} is stored twice")
        self._expected[chunk.stream] = max(expected, chunk.seq + 1)
        found.inserted = stored.first_row + chunk.num_rows
        found.agent_steps = stored.agent_steps_before + chunk.num_agent_steps
        found.add_rows(stored.first_row, found.inserted)
        if not chunk.stream.is_imported:
            found.run_rows = found.inserted
        self._payload(name, stored)

    def _payload(self, name: str, stored: StoredChunk) -> None:
        """The rows themselves: their checksum, and whether they are as many as the chunk says."""
        chunk = stored.chunk
        try:
            rows = split_rows(chunk.payload, self._columns)
            flags = {flag: rows[flag].decode() for flag in FLAGS}
        except (CheckpointError, ShapeMismatchError) as error:
            self._problem(f"{name}: {error}")
            return
        first = flags["is_first"]
        self._note(self._lives.stored(chunk, flags))
        self.found.carry_resets += len(carry_resets_of(chunk.payload))
        counts = (len(first), 0 if chunk.stream.is_imported else agent_steps(first))
        if counts != (chunk.num_rows, chunk.num_agent_steps):
            self._problem(
                f"{name} holds {counts} rows and agent steps, and says "
                f"{(chunk.num_rows, chunk.num_agent_steps)}"
            )

    def _note(self, problem: str) -> None:
        if problem:
            self._problem(problem)

    def _problem(self, sentence: str) -> None:
        self.found.problems.append(f"{self._folder}: {sentence}")


def _snapshots(folder: Path) -> list[ShardSnapshot]:
    """The snapshots on disk.

    Raises:
        CheckpointError: If their file is damaged.
    """
    try:
        return SnapshotStore(folder, kept_snapshots=1).snapshots
    except OSError as error:
        raise CheckpointError(f"{folder / 'marks.json'} cannot be read ({error})") from error


def _mark_problems(
    folder: Path,
    columns: dict[str, ArraySpec],
    num_rows: int,
    complaints: Iterator[tuple[ShardSnapshot, str]],
) -> Iterator[str]:
    """What is wrong with snapshots, and with the files that they name, and with the newest
    priorities.
    """
    files = SnapshotStore(folder, kept_snapshots=1)
    mutable = SequenceBatch.from_columns(columns).extras
    found: list[tuple[ShardSnapshot, str]] = []
    for snapshot, complaint in complaints:
        if complaint:
            found.append((snapshot, f"{folder}: {complaint}"))
        try:
            if snapshot.mutable_file:
                specs = {name: columns[name] for name in mutable}
                files.load_mutable(snapshot.mutable_file, specs, num_rows)
            if snapshot.weights_file:
                files.load_weights(snapshot.weights_file)
        except (CheckpointError, ShapeMismatchError) as error:
            found.append((snapshot, f"{folder}: a snapshot needs what cannot be read: {error}"))
    kept = _snapshots(folder) if found else []
    yield from (sentence for snapshot, sentence in found if snapshot in kept)
    newest = files.newest_weights
    try:
        if newest:
            files.load_weights(newest)
    except (CheckpointError, ShapeMismatchError) as error:
        if (folder / newest).exists():  # otherwise a newer one took its place
            yield f"{folder / newest}: {error}"
