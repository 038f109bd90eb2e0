"""Cuts through a shard's history, and the small files beside its journal that belong to them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import CheckpointError
from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows, encode_rows

__all__ = ["MarkFiles", "ShardMark"]


@dataclass(frozen=True, slots=True)
class ShardMark:
    """A cut, small enough for any checkpoint; JSON through ``dataclasses.asdict``.

    Attributes:
        segment, offset: Where the journal ends.
        oldest_segment: The oldest one needed to read the stored rows.
        next_row: Rows inserted by then.
        online_served: Windows that had left the online queue.
        mutable_file: Name of the file with the mutable columns, empty without any.
    """

    segment: int
    offset: int
    oldest_segment: int
    next_row: int
    online_served: int
    mutable_file: str = ""


class MarkFiles:
    """What lies in a shard's directory beside the journal: who owns it, the newest marks, and copies of mutable columns.

    Args:
        directory: Exists already.
        kept_marks: How many marks keep what they need.
    """

    def __init__(self, directory: Path, kept_marks: int) -> None:
        self._directory, self._kept = directory, kept_marks
        path = directory / "marks.json"
        self.marks = [ShardMark(**mark) for mark in json.loads(path.read_text())] if path.exists() else []

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make an empty directory ours.

        Raises:
            CheckpointError: If it was written under another identity; names the first difference.
        """
        path = self._directory / "shard.json"
        if not path.exists():
            _write_atomically(path, json.dumps(identity).encode())
            return
        found = json.loads(path.read_text())
        for key, value in identity.items():
            if found.get(key) != value:
                raise CheckpointError(
                    f"replay: {self._directory} was written with {key} {found.get(key)}, now it is {value}; use another run folder"
                )

    def set_marks(self, marks: Sequence[ShardMark]) -> None:
        """Remember the newest marks, on disk too, or a restart would free what they need; drop the files of older ones."""
        self.marks = list(marks[-self._kept :])
        _write_atomically(self._directory / "marks.json", json.dumps([asdict(mark) for mark in self.marks]).encode())
        used = {mark.mutable_file for mark in self.marks}
        for path in self._directory.glob("mutable-*.rows"):
            if path.name not in used:
                path.unlink()

    def save_mutable(self, row_ids: npt.NDArray[np.int64], columns: Mapping[str, np.ndarray]) -> str:
        """Write mutable columns of all stored rows; returns the name of the file."""
        name = f"mutable-{time.time_ns()}.rows"
        _write_atomically(self._directory / name, encode_rows({"row_id": row_ids, **columns}))
        return name

    def load_mutable(self, name: str, specs: Mapping[str, ArraySpec]) -> tuple[npt.NDArray[np.int64], Rows]:
        """Inverse of :meth:`save_mutable`.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        try:
            payload = (self._directory / name).read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"replay: {self._directory / name}, which a mark needs, is missing") from error
        columns = decode_rows(payload, {"row_id": ArraySpec((), "int64"), **specs})
        return columns.pop("row_id"), columns


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
