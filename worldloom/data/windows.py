"""Sampled windows: whole, or drawn with the decoding still to do. Axis legend: n windows, T rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldloom.core.sequence import Rows
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import PackedColumn

__all__ = ["ChunkRecord", "PendingWindows", "Windows"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Sampled windows.

    Attributes:
        columns: ``[n, T, ...]`` per column; fresh arrays that the caller owns.
        row_ids: ``[n, T]`` int64.
        versions: ``[n]`` int64, policy update number of each window's first trained row.
        inserted_s: ``[n]`` float64, insertion time of that row.
    """

    columns: Rows
    row_ids: Ids
    versions: Ids
    inserted_s: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What is kept once per chunk: rows [start, stop) and their packed columns."""

    start: int
    stop: int
    packed: Mapping[str, PackedColumn]
    packed_bytes: int


@dataclass(slots=True)
class PendingWindows:
    """Drawn windows whose packed columns are still to be decoded; needs the buffer no more."""

    _windows: Windows
    _records: Mapping[int, ChunkRecord]
    _ordinals: Ids
    _packed: Mapping[str, ArraySpec]

    def finish(self) -> Windows:
        """Decode what is packed and return the whole windows."""
        if not self._packed:
            return self._windows
        shape = self._ordinals.shape
        outputs = {name: np.empty((self._ordinals.size, *spec.shape), spec.dtype) for name, spec in self._packed.items()}
        flat_ids, flat_ordinals = self._windows.row_ids.reshape(-1), self._ordinals.reshape(-1)
        order = np.argsort(flat_ordinals, kind="stable")
        cuts = np.flatnonzero(np.diff(flat_ordinals[order])) + 1
        for places in np.split(order, cuts):
            record = self._records[int(flat_ordinals[places[0]])]
            inside = flat_ids[places] - record.start
            for name, output in outputs.items():
                output[places] = record.packed[name].unpack()[inside]
        self._windows.columns.update({name: output.reshape(*shape, *output.shape[1:]) for name, output in outputs.items()})
        return self._windows
