"""Where the plain columns of a buffer lie: small ones interleaved in one ring, large ones in a ring
each, in memory or mapped.

A mapped ring is a file without a name: its pages are the system's to write out and drop, and it is
gone with the process, which finds its rows again where they were journalled. Space for it is
reserved at once, so that a full disk is an error and no crash.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec

__all__ = ["NOTES", "SMALL_COLUMN_BYTES", "encoded_columns", "make_rings", "record_dtype"]

SMALL_COLUMN_BYTES = 256
NOTES = [
    ("#next_row", "int64"),
    ("#chunk", "int64"),
    ("#inserted_s", "float64"),
    ("#version", "int32"),
]
"""Fields beside the small columns: the successor's id (NO_ROW at the end of a stream), which chunk
the row came in and when, and the policy update that acted it.
"""


def encoded_columns(columns: Mapping[str, ArraySpec], mutable: Collection[str]) -> set[str]:
    """Columns that are kept encoded: the images."""
    return {name for name, spec in columns.items() if spec.is_image and name not in mutable}


def record_dtype(plain: Mapping[str, ArraySpec]) -> np.dtype[np.void]:
    """One row of the small columns with its notes."""
    fields = [
        (name, spec.dtype, spec.shape)
        for name, spec in plain.items()
        if spec.nbytes <= SMALL_COLUMN_BYTES
    ]
    return np.dtype([*fields, *NOTES], align=True)


def make_rings(
    plain: Mapping[str, ArraySpec], rows: int, mapped_in: Path | None
) -> tuple[npt.NDArray[np.void], dict[str, np.ndarray]]:
    """Empty rings.

    Args:
        plain: Columns that are not kept encoded.
        rows: Length of each ring.
        mapped_in: Folder whose disk holds the large columns; None keeps them in memory.

    Returns:
        The ring of records, and per plain column its array ``[rows, ...]`` (for a small one a view
        into the records).

    Raises:
        ConfigurationError: If the disk has no room.
    """
    records = np.empty(rows, record_dtype(plain))
    names = records.dtype.names or ()
    rings = {
        name: records[name]
        if name in names
        else _ring((rows, *spec.shape), np.dtype(spec.dtype), mapped_in)
        for name, spec in plain.items()
    }
    return records, rings


def _ring(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], mapped_in: Path | None
) -> np.ndarray:
    if mapped_in is None:
        return np.empty(shape, dtype)
    mapped_in.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with tempfile.TemporaryFile(dir=mapped_in) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise ConfigurationError(
                f"replay needs {size / 1e9:.1f} GB of disk in {mapped_in} for columns "
                f"that do not fit into memory ({error}); "
                "free space, or ask for fewer rows with --replay.capacity-steps"
            ) from error
        return np.memmap(file, dtype, "r+", shape=shape)
