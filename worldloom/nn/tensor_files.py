"""Tensors in files of PyTorch (``.pt``) that another program may have written: nothing in them is
executed, and they take no more memory than their size lets anybody expect.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.plain_files import open_plain

__all__ = ["Allowance", "read_tensors", "tensors_in"]

MOST_COPIES = 8
"""Tensors may be views of one storage, so that they take more memory as copies than in the file."""
SLACK_BYTES = 1 << 20
LONGEST_PICKLE = 64 << 20
WEIGHT_BYTES = 4
MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
"""What makes tensors of a shape; weights are float32."""
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors(path: str | os.PathLike[str], file: IO[bytes] | None = None) -> Any:
    """What a ``.pt`` file holds: tensors in containers, on the CPU.

    Args:
        path: The file, or its name for messages.
        file: The same, where it is open.

    Raises:
        CheckpointError: If it is missing, damaged, holds anything but tensors and containers, or
            would take more memory than its size lets anybody expect.
    """
    with reading(path, "is not a readable PyTorch file of tensors"):
        if file is None:
            with open_plain(path) as opened:
                return read_tensors(path, opened)
        size = os.fstat(file.fileno()).st_size
        _check_archive(path, file, size)
        try:
            with warnings.catch_warnings():
                # torch warns of foreign pickle protocols before it refuses them
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: {_what_else(str(error))}") from None
        _check_tensors(path, list(tensors_in(content)), size)
        return content


class Allowance(TorchFunctionMode):
    """In this block tensors are made up to a number of bytes: for a network whose sizes a file
    claims, before its weights are compared with it.

    Args:
        nbytes: Of all tensors together.
        complaint: What it says when there are more.

    Raises:
        CheckpointError: Before the tensor is allocated that is too much.
    """

    def __init__(self, nbytes: int, complaint: str) -> None:
        super().__init__()
        self._left = nbytes
        self._complaint = complaint

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by PyTorch for every operation."""
        del types
        if func in MAKERS:
            size = (kwargs or {}).get("size", args[0] if args else ())
            shape = size if isinstance(size, list | tuple) else args
            whole = [number for number in shape if type(number) is int]
            self._left -= math.prod(whole) * WEIGHT_BYTES
            if self._left < 0:
                raise CheckpointError(self._complaint)
        return func(*args, **(kwargs or {}))


def _check_archive(path: str | os.PathLike[str], file: IO[bytes], size: int) -> None:
    """PyTorch stores records as they are, so an archive is as large as what is in it."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{path}: has {size} bytes, and its records claim "
            f"{sum(member.file_size for member in members)}; it is damaged or hostile"
        )
    for member in members:
        if member.filename.endswith("data.pkl") and member.file_size > LONGEST_PICKLE:
            raise CheckpointError(
                f"{path}: its list of tensors has {member.file_size} bytes; it is foreign"
            )
    file.seek(0)


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor, each container visited once."""
    seen = set[int]()
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, Mapping | list | tuple | set) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.values() if isinstance(node, Mapping) else node)


def _check_tensors(path: str | os.PathLike[str], tensors: list[Tensor], size: int) -> None:
    """Refuse tensors that claim more elements than there are bytes, by strides of 0 for example."""
    total = 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(
                f"{path}: holds a tensor of layout {tensor.layout} on {tensor.device}, and only "
                "plain ones are read"
            )
        claimed = tensor.numel() * tensor.element_size()
        if claimed > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: a tensor of shape {tuple(tensor.shape)} has {claimed} bytes, and the "
                f"file holds {tensor.untyped_storage().nbytes()} of them; it is damaged or hostile"
            )
        total += claimed
    if total > MOST_COPIES * size + SLACK_BYTES:
        raise CheckpointError(
            f"{path}: has {size} bytes, and its tensors would take {total}; it is damaged or "
            "hostile"
        )


def _what_else(text: str) -> str:
    """Why PyTorch refused to unpickle a file, without its advice on how to run what is in it."""
    found = GLOBAL.search(text)
    what = f"it names {found[1]}, which would be executed" if found else "its list is no such list"
    return f"holds more than tensors ({what}); do not trust it"
