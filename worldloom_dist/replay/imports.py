"""Rows from files in a run's replay: each row once, however often a shard dies, and none of them
owed to training.

A file's episodes are dealt to the shards in turn; the share of a shard is one stream whose name is
made of the file's content. So a shard that begins again finds by its own counters how far it came,
and the same file named twice is the same rows. Such rows have no policy, are no agent steps, and
pass the train ratio by: they are there to be sampled, not to be counted.

What an agent stores beside the env's columns (DreamerV3's latents) no file has. It begins as zeros,
which say that there is none: the agent makes one of the row when a window first starts there, and
updates write back what they find behind it.

``imports.json`` in the run folder lists the files of a run; shards look at it while they run.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worldloom.core.exceptions import CheckpointError, MissingDependencyError
from worldloom.core.files import turn, write_json
from worldloom.core.json_text import read_object
from worldloom.core.plain_files import open_plain
from worldloom.core.sequence import NO_POLICY, Chunk, Rows, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import encode_rows
from worldloom_dist.replay.formats.action_bounds import check_bounds
from worldloom_dist.replay.formats.episode_files import (
    columns_of_name,
    open_episodes,
    source_files,
)
from worldloom_dist.replay.formats.episode_rows import fit_rows
from worldloom_dist.replay.shard import ReplayShard

__all__ = [
    "ImportList",
    "ImportReport",
    "check_beginning",
    "check_file",
    "is_gone",
    "load_share",
    "split_sources",
]

CHUNK_ROWS = 64
RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What one shard took from a file.

    Attributes:
        episodes, rows: Its share of the file.
        known_rows: Those of them that it had already.
        evicted_rows: Those of them for which replay has no room.
        repeated: Episodes of the whole file whose last observation is not known (see
            ``replay.formats.npz``).
        notes: What else there is to say of the whole file.
    """

    episodes: int = 0
    rows: int = 0
    known_rows: int = 0
    evicted_rows: int = 0
    repeated: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(self.sentences)

    @property
    def sentences(self) -> list[str]:
        """What there is to say, for people."""
        sentences = [f"stored {self.rows - self.known_rows} rows of {self.episodes} episodes"]
        if self.known_rows:
            sentences.append(f"{self.known_rows} rows had been stored before")
        if self.evicted_rows:
            sentences.append(
                f"replay has no room for {self.evicted_rows} of the rows, the oldest; "
                "raise --replay.capacity-steps"
            )
        if self.repeated:
            sentences.append(
                f"{self.repeated} episodes do not say what their last action led to, "
                "so their last observation stands there "
                "again; record next_obs or final_obs to have the true one"
            )
        return [*sentences, *self.notes]

    def of_share(self, shard: int) -> ImportReport:
        """The report of one shard of several: what is true of the whole file is said by the first
        of them only.
        """
        return self if shard == 0 else replace(self, repeated=0, notes=())

    @classmethod
    def joined(cls, shares: Sequence[ImportReport]) -> ImportReport:
        """What all shards together took from a file."""
        sums = {name: sum(getattr(share, name) for share in shares) for name in SHARED_OUT}
        return cls(**sums, repeated=shares[0].repeated, notes=shares[0].notes)


SHARED_OUT = ("episodes", "rows", "known_rows", "evicted_rows")


def split_sources(text: str | None) -> list[str]:
    """Names of files in ``--replay.load A,B``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def load_share(shard: ReplayShard, source: str, num_shards: int) -> ImportReport:
    """Store a shard's share of a file: every ``num_shards``-th episode. Safe to repeat; the whole
    file is looked at before its first row is stored.

    Raises:
        CheckpointError: If the file is missing or damaged, or its rows are not those of the run.
        StateError: If the disk takes no more; what is stored by then stays, and is known when the
            call is repeated.
    """
    stream = StreamId(shard.index, -fingerprint(source), 0)
    if not shard.next_seq(stream):
        check_file(source, shard.columns)
    opened = open_episodes(source)
    episodes = 0
    rows = 0
    known = 0

    def mine() -> Iterator[Rows]:
        """Episodes of this shard, counted on the way."""
        nonlocal episodes
        for number, episode in enumerate(opened.episodes):
            if number % num_shards == shard.index:
                episodes += 1
                yield fit_rows(episode, shard.columns, source)

    for seq, part in enumerate(_chunks(mine(), min(CHUNK_ROWS, shard.capacity_rows))):
        count = len(part["is_first"])
        rows += count
        if seq < shard.next_seq(stream):
            known += count
        else:
            shard.append(Chunk(stream, seq, NO_POLICY, count, 0, encode_rows(part)))
    evicted = max(0, rows - shard.capacity_rows)
    return ImportReport(episodes, rows, known, evicted, opened.repeated, tuple(opened.notes))


def check_file(
    source: str, shard_columns: Mapping[str, ArraySpec], env: EnvSpec | None = None
) -> None:
    """Look at all episodes of a file before it is written down that a run has it.

    Args:
        source: Its name.
        shard_columns: Of the run.
        env: Of the run; None where it is not known, so that bounds of actions are not compared.

    Raises:
        CheckpointError: As :func:`check_beginning`, wherever in the file.
    """
    for episode in _checked(source, shard_columns, env):
        fit_rows(episode, shard_columns, source)


def check_beginning(source: str, shard_columns: Mapping[str, ArraySpec], env: EnvSpec) -> None:
    """Look at a file before anything is started.

    Args:
        source: Its name.
        shard_columns: Of the run.
        env: Of the run.

    Raises:
        CheckpointError: If it is missing, damaged at its beginning, empty, has observations or
            actions that the run lacks, its actions are scaled by other bounds than those of the
            run's env, or its first episode does not fit into the columns of the run.
    """
    fit_rows(next(_checked(source, shard_columns, env)), shard_columns, source)


def _checked(
    source: str, shard_columns: Mapping[str, ArraySpec], env: EnvSpec | None
) -> Iterator[Rows]:
    """The episodes of a file that has some, and the observations and actions of the run."""
    wanted = {
        name for name in shard_columns if name == "obs" or name.startswith(("obs/", "action"))
    }
    opened = open_episodes(source)
    has = {
        name
        for name in opened.env.columns()
        if name == "obs" or name.startswith(("obs/", "action"))
    }
    if has != wanted:
        raise CheckpointError(
            f"{source}: holds {sorted(has)} and the run stores {sorted(wanted)}; {opened.choose}"
        )
    if env is not None and opened.has_native_actions:
        check_bounds(source, opened.env, env)
    first = next(opened.episodes, None)
    if first is None:
        raise CheckpointError(f"{source}: holds no transition; name a file with at least one")
    return itertools.chain([first], opened.episodes)


def is_gone(source: str) -> bool:
    """True when there is no file of this name any more."""
    try:
        return not all(path.exists() for path in source_files(source))
    except (CheckpointError, MissingDependencyError):
        return True


def fingerprint(source: str) -> int:
    """A positive number made of a file's bytes, and of what its name says of its columns."""
    paths = source_files(source)
    digest = hashlib.sha256(columns_of_name(source).encode())
    for path in paths:
        try:
            with open_plain(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); name a file that this machine has"
            ) from error
    return int.from_bytes(digest.digest()[:7], "little") + 1


class ImportList:
    """The files that belong to a run: those of its command line, and those that ``replay import``
    added later.

    Args:
        run_folder: The run folder.
        sources: Of the command line.
    """

    def __init__(self, run_folder: Path, sources: Iterable[str] = ()) -> None:
        self._path = run_folder / "imports.json"
        self._waiting = list(sources)
        self._seen: tuple[int, int, int] | None = None
        self._later: dict[str, float] = {}

    def read(self) -> list[str]:
        """The files that were added later."""
        try:
            found = read_object(self._path)["files"]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self._path} cannot be read ({error}); restore it from a copy"
            ) from error
        if not isinstance(found, list) or not all(isinstance(source, str) for source in found):
            raise CheckpointError(
                f"{self._path} cannot be read (it lists no names of files); restore it from a copy"
            )
        return found

    def add(self, sources: Iterable[str]) -> None:
        """Add files for good; of two that add at once each finds what the other has added."""
        replay = self._path.parent / "replay"
        replay.mkdir(exist_ok=True)
        with turn(replay):
            write_json(self._path, {"files": list(dict.fromkeys([*self.read(), *sources]))})

    def take_new(self) -> list[str]:
        """Files that this reader was not told of before, or gave back a while ago; costs one look
        at whether the list is another file.

        Raises:
            CheckpointError: If the list is damaged (once, until it is written again); the next call
                has the files that wait.
        """
        try:
            status = self._path.stat()
            found = (status.st_ino, status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            found = None
        if found != self._seen:
            self._seen = found
            self._waiting += self.read()
        due = [source for source, when in self._later.items() if when <= time.monotonic()]
        sources = list(dict.fromkeys([*self._waiting, *due]))
        self._waiting = []
        self._later = {
            source: when for source, when in self._later.items() if source not in sources
        }
        return sources

    def put_back(self, source: str) -> None:
        """A file could not be stored just now: name it again in half a minute."""
        self._later[source] = time.monotonic() + RETRY_AFTER_S


def _chunks(episodes: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Rows of all episodes, cut into chunks of ``size`` rows wherever that falls."""
    held: list[Rows] = []
    count = 0
    for episode in episodes:
        held.append(episode)
        count += len(episode["is_first"])
        if count < size:
            continue
        rows = _join(held)
        whole = count - count % size
        for start in range(0, whole, size):
            yield {name: value[start : start + size] for name, value in rows.items()}
        held = [{name: value[whole:] for name, value in rows.items()}]
        count = count - whole
    if count:
        yield _join(held)


def _join(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
