"""Weights in transit: one version, one flat buffer, one manifest. No torch: a process without it
can store and forward them.

The bytes are in safetensors layout (8-byte little-endian header length, JSON header, data), so any
tool can read them. bfloat16, which numpy lacks, travels as uint16 with the dtype name ``BF16`` in
the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from worldloom.core.exceptions import CheckpointError
from worldloom.core.json_text import parse_json
from worldloom.core.sequence import NO_POLICY, PolicyVersion

__all__ = ["TensorEntry", "WeightsSnapshot"]

NUMPY_DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
    "BOOL": "|b1",
}
NAMES = {np.dtype(code): name for name, code in NUMPY_DTYPES.items() if name != "BF16"}


class TensorEntry(NamedTuple):
    """Where one tensor lies in the flat buffer; ``dtype`` is a safetensors dtype name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class WeightsSnapshot:
    """What ``act`` needs, frozen at one version.

    Attributes:
        version: Which weights these are; never falls over a run.
        entries: The manifest, in buffer order.
        buffer: One contiguous read-only uint8 array; the owner of the snapshot must not write to
            it.
    """

    version: PolicyVersion
    entries: tuple[TensorEntry, ...]
    buffer: np.ndarray

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        version: PolicyVersion = NO_POLICY,
        *,
        bfloat16: tuple[str, ...] = (),
    ) -> WeightsSnapshot:
        """Copy arrays into one buffer; names in ``bfloat16`` are uint16 views of bfloat16
        tensors.
        """
        entries = []
        offset = 0
        for name, array in arrays.items():
            dtype = "BF16" if name in bfloat16 else NAMES[array.dtype]
            entries.append(
                TensorEntry(name, dtype, tuple(array.shape), offset, offset + array.nbytes)
            )
            offset += array.nbytes
        buffer = np.empty(offset, np.uint8)
        for entry, array in zip(entries, arrays.values(), strict=True):
            buffer[entry.start : entry.stop] = (
                np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            )
        buffer.flags.writeable = False
        return cls(version, tuple(entries), buffer)

    def arrays(self) -> dict[str, np.ndarray]:
        """Read-only views by name; bfloat16 tensors appear as uint16."""
        return {
            e.name: self.buffer[e.start : e.stop].view(NUMPY_DTYPES[e.dtype]).reshape(e.shape)
            for e in self.entries
        }

    def with_version(self, version: PolicyVersion) -> WeightsSnapshot:
        """The same weights under another version."""
        return replace(self, version=version)

    @property
    def nbytes(self) -> int:
        """Size of the buffer in bytes."""
        return int(self.buffer.nbytes)

    def to_bytes(self) -> bytes:
        """Safetensors layout; the version travels in the metadata."""
        header: dict[str, object] = {
            "__metadata__": {"version": f"{self.version.incarnation}.{self.version.update}"}
        }
        for e in self.entries:
            header[e.name] = {
                "dtype": e.dtype,
                "shape": list(e.shape),
                "data_offsets": [e.start, e.stop],
            }
        head = json.dumps(header, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head + self.buffer.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> WeightsSnapshot:
        """Inverse of :meth:`to_bytes`.

        Raises:
            CheckpointError: If the bytes are not in safetensors layout or an offset lies outside
                the data.
        """
        try:
            size = int.from_bytes(data[:8], "little")
            header = parse_json(data[8 : 8 + size])
            incarnation, update = header.pop("__metadata__")["version"].split(".")
            buffer = np.frombuffer(data, np.uint8, offset=8 + size)
            entries = tuple(
                TensorEntry(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"])
                for name, e in header.items()
            )
            snapshot = cls(PolicyVersion(int(incarnation), int(update)), entries, buffer)
            snapshot.arrays()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"weights: not in safetensors layout ({error})") from error
        return snapshot
