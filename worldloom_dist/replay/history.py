"""The rows of a run folder as its journals hold them, read without a lock and without changing
anything: for export.

The journals keep a little more than replay can sample, because space is freed in whole segments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import names_in, read_plain
from worldloom.core.sequence import FLAGS, Rows, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, StoredChunk

__all__ = ["EpisodeHistory", "shard_folders", "stored_columns", "stored_identity"]

SHARD_NAME = re.compile(r"shard-(0|[1-9]\d*)")


def shard_folders(replay: Path) -> list[Path]:
    """The folders of all shards, by number; folders of other names, a copy someone made for
    example, are none.

    Raises:
        CheckpointError: If there are none, or the folder cannot be listed.
    """
    try:
        names = (SHARD_NAME.fullmatch(name) for name in names_in(replay))
    except OSError as error:
        raise CheckpointError(
            f"{replay} cannot be listed ({error.strerror}); give the rights to read it, or bring "
            "back the disk that it leads to"
        ) from error
    shards = sorted((int(name[1]), replay / name[0]) for name in names if name)
    found = [path for _, path in shards if path.is_dir()]
    if not found:
        raise CheckpointError(
            f"{replay} holds no journals; a run with --replay.durability none keeps "
            "its rows in memory only"
        )
    return found


def stored_columns(folder: Path) -> dict[str, ArraySpec]:
    """What every row of a shard's folder has.

    Raises:
        CheckpointError: If the folder does not say.
    """
    identity = stored_identity(folder)
    try:
        columns = {name: ArraySpec.from_dict(spec) for name, spec in identity["columns"].items()}
        if missing := {"obs", "action", "reward", *FLAGS} - {
            name.partition("/")[0] for name in columns
        }:
            raise ValueError(f"no column {sorted(missing)}")
        return columns
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'shard.json'} cannot be read ({error}); the folder is no replay shard"
        ) from error


def stored_identity(folder: Path) -> dict[str, Any]:
    """What a shard's folder says it is; see ``records.shard_identity``.

    Raises:
        CheckpointError: If the folder does not say.
    """
    path = folder / "shard.json"
    try:
        return dict(parse_json(read_plain(path)))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the folder is no replay shard"
        ) from error


class EpisodeHistory:
    """Episodes of a run, stream by stream, oldest first.

    Args:
        replay: The run's replay folder.

    Attributes:
        fragment_rows: Rows of streams whose episode's beginning is gone, met so far; they are no
            episode and are left out.
    """

    def __init__(self, replay: Path) -> None:
        self._folders = shard_folders(replay)
        self.fragment_rows = 0

    def episodes(self) -> Iterator[Rows]:
        """Every episode whose first row is there, up to its end or to where its stream breaks off.

        Those of a file come in the order of the file, from which they were dealt to the shards in
        turn.
        """
        dealt: dict[int, list[Iterator[Rows]]] = {}
        for folder in self._folders:
            columns = stored_columns(folder)
            for stream, chunks in _streams(folder).items():
                episodes = self._stream(columns, chunks)
                if stream.is_imported:
                    dealt.setdefault(stream.incarnation, []).append(episodes)
                else:
                    yield from episodes
        for shares in dealt.values():
            for turn in itertools.zip_longest(*shares):
                yield from (rows for rows in turn if rows is not None)

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
        """The rows gathered so far as an episode; one that no one ended counts as truncated, as in
        sampling.
        """
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
    streams: dict[StreamId, dict[int, StoredChunk]] = {}
    for record in read_journal(folder, JournalDamage()):
        if record.kind == CHUNK:
            stored = StoredChunk.unpack(record.payload)
            # one that stands twice is taken once, as by a shard that reads its journal
            streams.setdefault(stored.chunk.stream, {}).setdefault(stored.chunk.seq, stored)
    return {stream: list(chunks.values()) for stream, chunks in streams.items()}
