"""A guard under which an update may not wait for its device, also where that device is the CPU.

On a CPU a wait is invisible; what would cause one on an accelerator is not: reading a scalar,
copying to the host, or an operator whose output's shape is data.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from worldloom.testing.contract import ContractError

__all__ = ["NoWaiting", "no_waiting"]

ATEN = torch.ops.aten
REFUSED = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.unique_dim,
    ATEN._unique2,
    ATEN.unique_consecutive,
    ATEN.equal,
    ATEN.bincount,
    ATEN.repeat_interleave,
    ATEN.is_nonzero,
    ATEN.item,
}
BY_MASK = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
TORCH = str(Path(torch.__file__).parent)
OPTIMIZERS = str(Path(torch.__file__).parent / "optim")
HERE = str(Path(__file__).parent)
COPIES = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__}


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the first operator that would make a host wait for a device; counts the others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        packet = func.overloadpacket
        by_mask = packet in BY_MASK and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        is_host_counter = packet == ATEN._local_scalar_dense and _is_optimizers()
        if (packet in REFUSED and not is_host_counter) or by_mask:
            raise ContractError(f"{func} waits for the device{_place()}")
        return func(*args, **(kwargs or {}))


class _NoCopies(TorchFunctionMode):
    """Raises where a tensor is copied to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES:
            raise ContractError(f"Tensor.{func.__name__} waits for the device{_place()}")
        return func(*args, **(kwargs or {}))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_optimizers() -> bool:
    """True inside one of torch's optimizers, which keep their step counter on the host."""
    files = (frame.f_code.co_filename for frame in _frames())
    outside = (name for name in files if not name.startswith(HERE))
    return any(name.startswith(OPTIMIZERS) for name in itertools.islice(outside, 4))


def _place() -> str:
    """Where the caller's own code asked for it, and what usually does."""
    for frame in _frames():
        if not frame.f_code.co_filename.startswith((TORCH, HERE)):
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            return f", asked for at {where} (.item(), float(tensor), `if tensor:` and masks do)"
    return ""


@contextlib.contextmanager
def no_waiting() -> Iterator[NoWaiting]:
    """Refuse both kinds of waits inside.

    Raises:
        ContractError: Names the first operator that waits.
    """
    with _NoCopies(), NoWaiting() as guard:
        yield guard
