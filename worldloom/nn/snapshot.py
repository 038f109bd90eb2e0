"""Torch tensors to and from ``core.weights.WeightsSnapshot``: the one place where weights leave or
enter torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError
from worldloom.core.weights import TensorEntry, WeightsSnapshot

__all__ = ["check_shapes", "copy_into", "flat_bytes", "pack", "to_bfloat16", "unpack_into"]

TORCH_DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def pack(
    tensors: Mapping[str, Tensor], *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> WeightsSnapshot:
    """Copy tensors to the host into one flat buffer.

    Args:
        tensors: By name; any device.
        dtype: What floating-point tensors become on the way; the others keep their own dtype.
    """
    target = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    arrays = {}
    halves = []
    for name, tensor in tensors.items():
        host = (
            tensor.detach()
            .to("cpu", target if tensor.is_floating_point() else tensor.dtype)
            .contiguous()
        )
        if host.dtype == torch.bfloat16:
            halves.append(name)
            host = host.view(torch.uint16)
        arrays[name] = host.numpy()
    return WeightsSnapshot.from_arrays(arrays, bfloat16=tuple(halves))


def to_bfloat16(snapshot: WeightsSnapshot) -> WeightsSnapshot:
    """The same weights with every float32 tensor as bfloat16: half the bytes, 8 bits of mantissa
    (2^-9 relative error).
    """
    arrays = dict(snapshot.arrays())
    halves = []
    for entry in snapshot.entries:
        if entry.dtype == "F32":
            arrays[entry.name] = (
                torch.tensor(arrays[entry.name]).to(torch.bfloat16).view(torch.uint16).numpy()
            )
        if entry.dtype in ("F32", "BF16"):
            halves.append(entry.name)
    return WeightsSnapshot.from_arrays(arrays, snapshot.version, bfloat16=tuple(halves))


@torch.no_grad()
def flat_bytes(
    tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[TensorEntry, ...]]:
    """Copy tensors into one flat buffer on their own device: bytes ``[n]`` and the manifest of
    :func:`pack`.

    Args:
        tensors: By name, all on one device, which no one waits for.
        dtype: What floating-point tensors become.
    """
    parts = []
    entries = []
    offset = 0
    for name, tensor in tensors.items():
        sent = dtype if tensor.is_floating_point() else tensor.dtype
        flat = tensor.detach().to(sent).contiguous().view(-1).view(torch.uint8)
        entries.append(
            TensorEntry(name, DTYPE_NAMES[sent], tuple(tensor.shape), offset, offset + len(flat))
        )
        parts.append(flat)
        offset += len(flat)
    return torch.cat(parts), tuple(entries)


@torch.no_grad()
def unpack_into(snapshot: WeightsSnapshot, tensors: Mapping[str, Tensor]) -> None:
    """Copy a snapshot into existing tensors of the same names and shapes (in place; dtype and
    device are the target's).

    Raises:
        CheckpointError: If a name is missing or unknown, or a shape differs. Nothing is written
            then.
    """
    shapes = {e.name: e.shape for e in snapshot.entries}
    expected = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise CheckpointError(
                f"weights: tensor {name!r} has shape {shapes.get(name)}, this policy "
                f"needs {expected.get(name)}"
            )
    data = (
        torch.frombuffer(bytearray(snapshot.buffer.tobytes()), dtype=torch.uint8)
        if snapshot.nbytes
        else torch.empty(0, dtype=torch.uint8)
    )
    for entry in snapshot.entries:
        flat = data[entry.start : entry.stop]
        if entry.start % 8:
            flat = flat.clone()
        tensors[entry.name].copy_(flat.view(TORCH_DTYPES[entry.dtype]).reshape(entry.shape))


def check_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor that is missing, unknown or of another
    shape.
    """
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"agent state: tensor {name!r} has shape {shapes[1]}, this agent needs {shapes[0]}"
            )


@torch.no_grad()
def copy_into(what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Overwrite tensors in place by saved ones of the same shapes; nothing is broadcast.

    Args:
        what: How an error calls them.

    Raises:
        CheckpointError: If there are more or fewer, or one has another shape; nothing is changed.
    """
    shapes = [[tuple(tensor.shape) for tensor in group] for group in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{what}: has shapes {shapes[1]}, this agent needs {shapes[0]}")
    for target, source in zip(ours, theirs, strict=True):
        target.copy_(source)
