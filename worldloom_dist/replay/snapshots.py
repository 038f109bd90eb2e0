"""Cuts through a shard's history, and the small files beside its journal that belong to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import replacing, sync
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows, encode_rows
from worldloom_dist.replay.journal import MOST_SEGMENT_BYTES

__all__ = ["ShardSnapshot", "SnapshotStore"]

WEIGHTS = {
    "row_id": ArraySpec((), "int64"),
    "part": ArraySpec((), "uint8"),
    "weight": ArraySpec((), "float64"),
}


ENCODING_BYTES = 2**20
"""What encoded rows may take beside their columns."""
LARGEST = 2**62
NUMBERED = re.compile(r"(mutable|weights)-(\d+)\.rows")
"""Files are numbered: a clock may be set back. Versions before 0.5 took nanoseconds for the
number."""


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """A cut, small enough for any checkpoint; JSON through ``dataclasses.asdict``.

    Attributes:
        segment, offset: Where the journal ends.
        oldest_segment: The oldest one needed to read the stored rows.
        next_row: Rows inserted by then.
        online_served: Windows that had left the online queue.
        mutable_file: Name of the file with the mutable columns, empty without any.
        weights_file: Name of the file with what priorities came to, empty without any.
    """

    segment: int
    offset: int
    oldest_segment: int
    next_row: int
    online_served: int
    mutable_file: str = ""
    weights_file: str = ""


class SnapshotStore:
    """What lies in a shard's directory beside the journal: its owner, the newest snapshots, copies
    of mutable columns, and priorities.

    Args:
        directory: Exists already.
        kept_snapshots: How many snapshots keep what they need.
        fsync: Whether what is written must survive a power loss.

    Raises:
        CheckpointError: If the list of snapshots is damaged.
    """

    def __init__(self, directory: Path, kept_snapshots: int, *, fsync: bool = False) -> None:
        self._directory = directory
        self._kept = kept_snapshots
        self._fsync = fsync
        self._newest = 0
        path = directory / "marks.json"
        self.snapshots: list[ShardSnapshot] = []
        with reading(f"replay: {path}", "is damaged; restore it from a copy"):
            if path.exists():
                self.snapshots = [ShardSnapshot(**snapshot) for snapshot in _read_json(path)]
            for snapshot in self.snapshots:
                _check_snapshot(snapshot)

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make an empty directory ours.

        Raises:
            CheckpointError: If it was written under another identity (names the first difference),
                or cannot be read.
        """
        path = self._directory / "shard.json"
        if not path.exists():
            self._write(path, json.dumps(identity).encode())
            return
        found = _read_json(path)
        if not isinstance(found, dict):
            raise CheckpointError(
                f"replay: {path} is damaged (it holds {found!r}); restore it, or use "
                "another run folder"
            )
        for key, value in identity.items():
            if found.get(key) != value:
                raise CheckpointError(
                    f"replay: {self._directory} was written with {key} "
                    f"{found.get(key)}, now it is {value}; use another run folder"
                )

    def set_snapshots(self, snapshots: Sequence[ShardSnapshot]) -> None:
        """Remember the newest snapshots, on disk too, or a restart would free what they need; drop
        the files of older ones.
        """
        kept = list(snapshots[-self._kept :])
        self._write(
            self._directory / "marks.json",
            json.dumps([asdict(snapshot) for snapshot in kept]).encode(),
        )
        self.snapshots = kept
        used = {snapshot.mutable_file for snapshot in self.snapshots}
        _delete(path for path in self._directory.glob("mutable-*.rows") if path.name not in used)
        self.drop_weights(keep=self.newest_weights)

    def save_mutable(
        self, row_ids: npt.NDArray[np.int64], columns: Mapping[str, np.ndarray]
    ) -> str:
        """Write mutable columns of all stored rows; returns the name of the file."""
        name = self._next_name("mutable")
        self._write(self._directory / name, encode_rows({"row_id": row_ids, **columns}))
        return name

    def load_mutable(
        self, name: str, specs: Mapping[str, ArraySpec], num_rows: int
    ) -> tuple[npt.NDArray[np.int64], Rows]:
        """Inverse of :meth:`save_mutable`.

        Args:
            name: Of the file.
            specs: Of its columns.
            num_rows: Rows that the shard has ever had, which the file cannot exceed.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        stored = {"row_id": ArraySpec((), "int64"), **specs}
        row_bytes = sum(spec.nbytes for spec in stored.values())
        columns = self._load(name, stored, ENCODING_BYTES + 2 * num_rows * row_bytes)
        return columns.pop("row_id"), columns

    def save_weights(self, starts: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> str:
        """Write what priorities of ``n`` windows came to, ``[parts, n + 1]``; returns the name of
        the file.

        A restart takes the newest such file; those that no snapshot names go when a newer one is
        there.
        """
        name = self._next_name("weights")
        parts = len(weights)
        columns = {
            "row_id": np.tile(np.append(starts, -1), parts),
            "part": np.repeat(np.arange(parts, dtype=np.uint8), len(starts) + 1),
            "weight": weights.reshape(-1),
        }
        self._write(self._directory / name, encode_rows(columns))
        self.drop_weights(keep=self.newest_weights)
        return name

    def load_weights(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Inverse of :meth:`save_weights`.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        columns = self._load(name, WEIGHTS, MOST_SEGMENT_BYTES)
        with reading(f"replay: {self._directory / name}", "is damaged"):
            parts = int(columns["part"][-1]) + 1
            starts = columns["row_id"].reshape(parts, -1)[0, :-1]
            return starts, columns["weight"].reshape(parts, -1)

    @property
    def newest_weights(self) -> str:
        """Name of the newest file of weights; empty without any."""
        return max(self._names("weights"), key=_number, default="")

    def drop_weights(self, *, keep: str) -> None:
        """Delete the files of weights but ``keep`` and those of snapshots."""
        used = {keep, *(snapshot.weights_file for snapshot in self.snapshots)}
        _delete(path for path in self._directory.glob("weights-*.rows") if path.name not in used)

    def _names(self, kind: str) -> list[str]:
        found = (path.name for path in self._directory.glob(f"{kind}-*.rows"))
        return [name for name in found if NUMBERED.fullmatch(name)]

    def _next_name(self, kind: str) -> str:
        """A name that no file has, nor any that a snapshot has named."""
        named = [
            name
            for snapshot in self.snapshots
            for name in (snapshot.mutable_file, snapshot.weights_file)
            if NUMBERED.fullmatch(name)
        ]
        numbers = map(_number, [*self._names("mutable"), *self._names("weights"), *named])
        self._newest = max([self._newest, *numbers]) + 1
        return f"{kind}-{self._newest:08d}.rows"

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file at once."""
        with replacing(path) as temporary:
            temporary.write_bytes(data)
            if self._fsync:
                sync(temporary)
        if self._fsync:
            sync(path.parent)

    def _load(self, name: str, specs: Mapping[str, ArraySpec], most_bytes: int) -> Rows:
        try:
            payload = read_plain(self._directory / name, most_bytes)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"replay: {self._directory / name}, which a snapshot needs, is missing"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"replay: {self._directory / name} cannot be read ({error})"
            ) from error
        try:
            return decode_rows(payload, specs)
        except CheckpointError as error:
            raise CheckpointError(
                f"replay: {self._directory / name} is damaged ({error})"
            ) from error


def _check_snapshot(snapshot: ShardSnapshot) -> None:
    """Refuse, with any error, what no version writes."""
    *places, mutable_file, weights_file = astuple(snapshot)
    if not all(type(place) is int and -1 <= place < LARGEST for place in places):
        raise ValueError(f"a snapshot cannot stand at {places}")
    for name in (mutable_file, weights_file):
        if name and not NUMBERED.fullmatch(name):
            raise ValueError(f"a snapshot cannot need a file {name!r}")


def _number(name: str) -> int:
    match = NUMBERED.fullmatch(name)
    return int(match[2]) if match else 0


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_plain(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"replay: {path} is damaged ({error}); restore it from a copy"
        ) from error


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
