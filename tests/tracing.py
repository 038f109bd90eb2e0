"""An update or a decision on a device without values (torch's ``meta``), in a GPU's place.

Reading a value, mixing devices, and a shape that hangs on values are errors there, as they are
while a CUDA graph is recorded. What runs is counted: every operator that is no view is at least one
launch. Precision is float32; the casts of bfloat16 come on top.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import EnvSpec
from worldloom.nn import rmsnorm

aten = torch.ops.aten
NO_KERNEL = {
    aten._unsafe_view.default,
    aten.detach.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.lift_fresh.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
NOT_DETERMINISTIC = {
    "cumsum",
    "max_pool2d_with_indices_backward",
    "adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool2d_backward",
    "upsample_bilinear2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "grid_sampler_2d_backward",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "put_",
    "scatter_reduce",
}
"""Operators that torch refuses on CUDA for floats, or may refuse, when it must be deterministic."""
HOST = {"_local_scalar_dense", "masked_select", "nonzero"}


class FakeGenerator(torch.Generator):
    """Of a device that has none."""

    def __new__(cls, device: Any = "cpu") -> FakeGenerator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


class _WithoutGenerators(TorchFunctionMode):
    """Draws without generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("generator"), FakeGenerator):
            del kwargs["generator"]
        return func(*args, **kwargs)


class Launches(TorchDispatchMode):
    """Counts what a GPU would be given, and refuses what a recording cannot hold.

    Attributes:
        count: Operators that launch something, by name: the least that a GPU is given.
        beyond: What torch launches for them beyond one each, by reading its code for CUDA.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.beyond: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """One per operator."""
        return sum(self.count.values())

    @property
    def estimate(self) -> int:
        """As many as torch's code for CUDA makes of them."""
        return self.total + sum(self.beyond.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        out = func(*args, **kwargs)
        tensors = [
            t
            for t in torch.utils._pytree.tree_leaves((args, kwargs, out))
            if isinstance(t, torch.Tensor)
        ]
        devices = {t.device.type for t in tensors}
        assert name not in HOST, f"{func} reads a value"
        assert devices <= {"meta"}, f"{func} touches {sorted(devices)}"
        if torch.are_deterministic_algorithms_enabled() and name in NOT_DETERMINISTIC:
            assert not tensors[0].is_floating_point(), f"{func} is not deterministic"
        if func not in NO_KERNEL and func.namespace != "profiler" and not _is_view(func):
            self.count[name] += 1
            self.beyond[name] += _launches(name, args) - 1
        return out


DEPTH_TO_TENSORS = (110, 64, 48, 36, 30)
"""Most tensors of one launch of an operator on 1 to 5 lists."""
BLOCKS, CHUNK = 320, 65_536
"""Most blocks of one such launch, and elements of a block."""


def _launches(name: str, args: Any) -> int:
    """How many kernels one operator is, where it is more than one by torch's own code: a product
    that adds a matrix copies it first, and an operator on lists cuts them, or goes through them
    one by one where their shapes differ.
    """
    if name == "addmm":
        return 1 if args[0].dim() == 1 else 2
    if name == "baddbmm":
        return 2
    if not name.startswith(("_foreach_", "_fused_adam")):
        return 1
    lists = [a for a in args if isinstance(a, list | tuple) and a and torch.is_tensor(a[0])]
    if name.startswith("_foreach_") and any(
        one.shape != other.shape
        for parts in lists[1:]
        for one, other in zip(lists[0], parts, strict=True)
    ):
        return len(lists[0])
    tensors, blocks, launches = 0, 0, 1
    for tensor in lists[0]:
        tensors += 1
        blocks += -(-tensor.numel() // CHUNK)
        if tensors > DEPTH_TO_TENSORS[min(len(lists), 5) - 1] or blocks > BLOCKS:
            launches += max(1, blocks // BLOCKS)
            tensors, blocks = 1, blocks % BLOCKS
    return launches


def _is_view(func: Any) -> bool:
    returned = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in returned)


def _one_kernel(
    x: torch.Tensor, scale: torch.Tensor, eps: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As a GPU has the fused norm; elsewhere torch composes it."""
    return torch.mul(x, scale), x.new_empty(*x.shape[:-1], 1)


@contextlib.contextmanager
def valueless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Agents may be made on ``meta`` in here."""
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(rmsnorm, "fused_norm", _one_kernel)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    with _WithoutGenerators():
        yield


def blank_batch(agent: Any, env: EnvSpec, device: str = "meta") -> SequenceBatch:
    """Windows of the size that the agent asks for, without values."""
    sampling = agent.spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {
        name: torch.empty(
            *lead, *spec.shape, dtype=getattr(torch, np.dtype(spec.dtype).name), device=device
        )
        for name, spec in env.columns(agent.spec.extras).items()
    }
    return SequenceBatch.from_columns(columns)
