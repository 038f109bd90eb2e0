"""A guard under which an update may not wait for its device, also where that device is the CPU.

On a CPU a wait is invisible; what would cause one on an accelerator is not: reading a scalar,
copying to the host, or an operator whose output's shape is data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
        if packet in REFUSED or by_mask:
            raise ContractError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _NoCopies(TorchFunctionMode):
    """Raises where a tensor is copied to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES:
            raise ContractError(f"Tensor.{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting() -> Iterator[NoWaiting]:
    """Refuse both kinds of waits inside.

    Raises:
        ContractError: Names the first operator that waits.
    """
    with _NoCopies(), NoWaiting() as guard:
        yield guard
