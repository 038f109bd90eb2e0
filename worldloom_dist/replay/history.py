"""The rows of a run folder as its journals hold them, read without a lock and without changing anything: for export.

The journals keep a little more than replay can sample, because space is freed in whole segments.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldloom.core.exceptions import CheckpointError
from worldloom.core.sequence import Rows, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, StoredChunk

__all__ = ["EpisodeHistory", "shard_folders", "stored_columns"]


def shard_folders(replay: Path) -> list[Path]:
    """The folders of all shards, by number.

    Raises:
        CheckpointError: If there are none.
    """
    found = sorted(replay.glob("shard-*"), key=lambda path: int(path.name.partition("-")[2]))
    if not found:
        raise CheckpointError(f"{replay} holds no journals; a run with --replay.durability none keeps its rows in memory only")
    return found


def stored_columns(folder: Path) -> dict[str, ArraySpec]:
    """What every row of a shard's folder has.

    Raises:
        CheckpointError: If the folder does not say.
    """
    try:
        identity = json.loads((folder / "shard.json").read_text())
        return {name: ArraySpec.from_dict(spec) for name, spec in identity["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'shard.json'} cannot be read ({error}); the folder is no replay shard") from error


class EpisodeHistory:
    """Episodes of a run, stream by stream, oldest first.

    Args:
        replay: The run's replay folder.

    Attributes:
        fragment_rows: Rows of streams whose episode's beginning is gone, met so far; they are no episode and are left out.
    """

    def __init__(self, replay: Path) -> None:
        self._folders, self.fragment_rows = shard_folders(replay), 0

    def episodes(self) -> Iterator[Rows]:
        """Every episode whose first row is there, up to its end or to where its stream breaks off."""
        for folder in self._folders:
            columns, streams = stored_columns(folder), _streams(folder)
            for chunks in streams.values():
                yield from self._stream(columns, chunks)

    def _stream(self, columns: dict[str, ArraySpec], chunks: list[StoredChunk]) -> Iterator[Rows]:
        chunks.sort(key=lambda stored: stored.chunk.seq)
        parts: list[Rows] = []
        expected = None
        for stored in chunks:
            if stored.chunk.seq != expected:
                yield from self._close(parts)
                parts = []
            expected = stored.chunk.seq + 1
            rows = decode_rows(stored.chunk.payload, columns)
            cuts = [0, *np.flatnonzero(rows["is_first"]).tolist(), len(rows["is_first"])]
            for start, stop in itertools.pairwise(cuts):
                if start < stop:
                    if rows["is_first"][start]:
                        yield from self._close(parts)
                        parts = []
                    parts.append({name: value[start:stop] for name, value in rows.items()})
        yield from self._close(parts)

    def _close(self, parts: list[Rows]) -> Iterator[Rows]:
        """The rows gathered so far as an episode; one that nobody ended counts as truncated, as in sampling."""
        if not parts:
            return
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not rows["is_first"][0]:
            self.fragment_rows += len(rows["is_first"])
            return
        if not rows["terminated"][-1] and len(rows["is_first"]) > 1:
            rows["truncated"][-1] = True
        yield rows


def _streams(folder: Path) -> dict[StreamId, list[StoredChunk]]:
    streams: dict[StreamId, list[StoredChunk]] = {}
    for record in read_journal(folder, JournalDamage()):
        if record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            streams.setdefault(stored.chunk.stream, []).append(stored)
    return streams
