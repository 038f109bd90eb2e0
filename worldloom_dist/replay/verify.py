"""Is a run folder whole? Every checksum and every counter of its journals, marks, checkpoints and summary; nothing is changed.

Works beside a live run too: what is being written at that moment is a torn tail, which is no damage because nobody acknowledged it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError, WorldLoomError
from worldloom.core.sequence import SequenceBatch, StreamId, agent_steps
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import split_rows
from worldloom_dist.replay.gaps import GapTable
from worldloom_dist.replay.history import shard_folders, stored_columns
from worldloom_dist.replay.journal import HEAD, JournalDamage, Record, read_journal
from worldloom_dist.replay.marks import MarkFiles
from worldloom_dist.replay.records import CHUNK, DUPLICATE, LOST, StoredChunk, unpack_count

__all__ = ["RunFindings", "ShardFindings", "verify_run", "verify_shard"]


@dataclass(slots=True)
class ShardFindings:
    """What a shard's folder holds.

    Attributes:
        chunks, rows: Intact ones on disk.
        inserted, agent_steps, duplicate, lost: The books at the end of the journal.
        torn_bytes: An unfinished record at the end.
        problems: One sentence each; empty when the folder is whole.
    """

    chunks: int = 0
    rows: int = 0
    inserted: int = 0
    agent_steps: int = 0
    duplicate: int = 0
    lost: int = 0
    torn_bytes: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunFindings:
    """What a run folder holds: per shard, the checkpoints that were read, and every problem."""

    shards: dict[str, ShardFindings] = field(default_factory=dict)
    checkpoints: int = 0
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("chunks", "rows", "inserted", "agent_steps", "duplicate", "lost", "torn_bytes")
        shards = {name: {key: getattr(found, key) for key in names} for name, found in self.shards.items()}
        return {"shards": shards, "checkpoints": self.checkpoints, "problems": self.problems}


def verify_run(folder: Path) -> RunFindings:
    """Check a whole run folder.

    Raises:
        CheckpointError: If it holds no journals.
    """
    findings = RunFindings()
    for shard in shard_folders(folder / "replay"):
        findings.shards[shard.name] = verify_shard(shard)
        findings.problems += findings.shards[shard.name].problems
    findings.problems += [f"{name} is missing" for name in ("config.json", "summary.json") if not (folder / name).is_file()]
    if (folder / "summary.json").is_file():
        findings.problems += _summary_problems(folder / "summary.json", list(findings.shards.values()))
    findings.problems += _checkpoint_problems(folder / "checkpoints", findings)
    return findings


def verify_shard(folder: Path) -> ShardFindings:
    """Check one shard's folder."""
    try:
        columns = stored_columns(folder)
    except CheckpointError as error:
        return ShardFindings(problems=[str(error)])
    damage = JournalDamage()
    reader = _Reader(folder, columns)
    for record in read_journal(folder, damage):
        reader.take(record)
    found = reader.found
    found.torn_bytes = damage.torn_bytes
    if damage.corrupt_bytes:
        found.problems.append(f"{folder}: {damage.corrupt_bytes} bytes of the journal are damaged")
    found.problems += _mark_problems(folder, columns, found)
    return found


class _Reader:
    """Follows the books of a journal record by record.

    Args:
        folder: For the messages.
        columns: What every row must have.
    """

    def __init__(self, folder: Path, columns: dict[str, ArraySpec]) -> None:
        self.found = ShardFindings()
        self._folder, self._columns = folder, columns
        self._expected: dict[StreamId, int] = {}
        self._gaps, self._has_begun = GapTable(), False

    def take(self, record: Record) -> None:
        """Check one record."""
        if record.kind == HEAD:
            self._head(json.loads(record.payload))
        elif record.kind == LOST:
            books = json.loads(record.payload)
            self.found.inserted, self.found.agent_steps, self.found.lost = books["next_row"], books["agent_steps"], books["lost"]
        elif record.kind == DUPLICATE:
            self.found.duplicate += unpack_count(record.payload)
        elif record.kind == CHUNK:
            self._chunk(StoredChunk.unpack(record.payload))
        else:
            self._problem(f"segment {record.segment} has a record of unknown kind {record.kind}")
        self._has_begun = True

    def _head(self, head: dict[str, Any]) -> None:
        found = self.found
        if self._has_begun:
            for name, mine in (("next_row", found.inserted), ("agent_steps", found.agent_steps), ("duplicate", found.duplicate)):
                if head[name] != mine:
                    self._problem(f"a segment begins with {name} {head[name]}, and the records before it give {mine}")
        found.inserted, found.agent_steps = head["next_row"], head["agent_steps"]
        found.duplicate, found.lost = head["duplicate"], head["lost"]
        self._expected = {StreamId(*entry[:3]): entry[3] for entry in head["streams"]}
        self._gaps.load(head["gaps"])

    def _chunk(self, stored: StoredChunk) -> None:
        chunk, found = stored.chunk, self.found
        name = f"chunk {chunk.stream}/{chunk.seq}"
        if (stored.first_row, stored.steps_before) != (found.inserted, found.agent_steps) and (self._has_begun or found.inserted):
            self._problem(
                f"{name} stands at row {stored.first_row} and agent step {stored.steps_before}, and the records before it end at "
                f"row {found.inserted} and agent step {found.agent_steps}"
            )
        expected = self._expected.get(chunk.stream, 0)
        if self._gaps.is_new(chunk.stream, chunk.seq, expected):
            self._gaps.stored(chunk.stream, chunk.seq, expected)
        else:
            self._problem(f"{name} is stored twice")
        self._expected[chunk.stream] = max(expected, chunk.seq + 1)
        found.inserted = stored.first_row + chunk.num_rows
        found.agent_steps = stored.steps_before + chunk.num_agent_steps
        found.chunks, found.rows = found.chunks + 1, found.rows + chunk.num_rows
        try:
            first = split_rows(chunk.payload, self._columns)["is_first"].unpack()
        except (CheckpointError, ShapeMismatchError) as error:
            self._problem(f"{name}: {error}")
            return
        counts = (len(first), 0 if chunk.stream.is_imported else agent_steps(first))
        if counts != (chunk.num_rows, chunk.num_agent_steps):
            self._problem(f"{name} holds {counts} rows and agent steps, and says {(chunk.num_rows, chunk.num_agent_steps)}")

    def _problem(self, sentence: str) -> None:
        self.found.problems.append(f"{self._folder}: {sentence}")


def _mark_problems(folder: Path, columns: dict[str, ArraySpec], found: ShardFindings) -> list[str]:
    problems = []
    try:
        files = MarkFiles(folder, kept_marks=1)
    except (ValueError, TypeError) as error:
        return [f"{folder}/marks.json cannot be read ({error})"]
    mutable = SequenceBatch.from_columns(columns).extras
    for mark in files.marks:
        if mark.next_row > found.inserted:
            problems.append(f"{folder}: a mark stands at row {mark.next_row}, and the journal ends at row {found.inserted}")
        try:
            if mark.mutable_file:
                files.load_mutable(mark.mutable_file, {name: columns[name] for name in mutable})
            if mark.weights_file:
                files.load_weights(mark.weights_file)
        except (CheckpointError, ShapeMismatchError) as error:
            problems.append(str(error))
    return problems


def _summary_problems(path: Path, shards: list[ShardFindings]) -> Iterator[str]:
    try:
        summary = json.loads(path.read_text())
        rows, status, steps = summary["rows"], summary["status"], summary["agent_steps"]
        books = {name: int(rows[name]) for name in ("inserted", "stored", "evicted", "lost_acked")}
    except (ValueError, KeyError, TypeError) as error:
        yield f"{path} cannot be read ({error})"
        return
    if books["inserted"] != books["stored"] + books["evicted"] + books["lost_acked"]:
        yield f"{path}: inserted {books['inserted']} is not stored {books['stored']} + evicted + lost of {books}"
    if status not in ("completed", "stopped"):
        return  # the summary of a run that goes on, or was killed, is a little older than its journals
    for name, mine in (("inserted", sum(s.inserted for s in shards)), ("agent_steps", sum(s.agent_steps for s in shards))):
        said = books["inserted"] if name == "inserted" else int(steps)
        if said != mine and not any(shard.problems for shard in shards):
            yield f"{path}: says {name} {said}, and the journals say {mine}"


def _checkpoint_problems(folder: Path, findings: RunFindings) -> Iterator[str]:
    from worldloom.training.checkpoints import load_tree

    for path in sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.endswith(".tmp")):
        try:
            load_tree(path)
            findings.checkpoints += 1
        except WorldLoomError as error:
            yield str(error)
