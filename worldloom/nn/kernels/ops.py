"""The kernels as operators of torch, ``torch.ops.worldloom.*``: one launch each, which a CUDA graph
records and a trace without values counts.

On CUDA they are Triton's, on a CPU their definitions, on ``meta`` nothing. They write into tensors
of the caller, and have no derivative of their own.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from worldloom.nn.kernels import definitions

__all__ = ["LAUNCHES", "SCHEMAS", "kernel"]

LAUNCHES = "worldloom.nn.kernels.launches"
"""Imported where a GPU is about to run them: it needs Triton, which torch brings for CUDA only."""

SCHEMAS = {
    "norm_silu": "(Tensor(a!) x, Tensor scale, Tensor(b!) out, Tensor? add, Tensor? blocks, "
    "float eps) -> ()",
    "norm_silu_gradient": "(Tensor grad, Tensor x, Tensor scale, Tensor(a!) d_x, "
    "Tensor(b!) d_scale, float eps, bool sums) -> ()",
    "gru_gates": "(Tensor pre, Tensor bias, Tensor before, Tensor(a!) after, Tensor? keep, "
    "Tensor(b!)? masked) -> ()",
    "gru_gates_gradient": "(Tensor pre, Tensor bias, Tensor before, Tensor grad, "
    "Tensor(a!) carry, Tensor(b!) d_pre) -> ()",
    "state_gradient": "(Tensor(a!) carry, Tensor blocks, Tensor direct, Tensor keep, "
    "Tensor grad) -> ()",
    "sample_one_hot": "(Tensor logits, Tensor draws, float unimix, Tensor(a!) hard, "
    "Tensor(b!) classes, Tensor? keep, Tensor(c!)? masked) -> ()",
    "one_hot_gradient": "(Tensor logits, Tensor grad, Tensor? carried, Tensor? keep, "
    "Tensor direct, float unimix, Tensor(a!) out) -> ()",
    "lambda_returns": "(Tensor base, Tensor keep, Tensor boot, Tensor(a!) out) -> ()",
    "two_hot_weights": "(Tensor value, Tensor bins, Tensor(a!) index, Tensor(b!) weight) -> ()",
    "laprop": "(Tensor(a!) grad, Tensor(b!) mean_square, Tensor(c!) momentum, Tensor ratio, "
    "Tensor part, Tensor start, Tensor stop, Tensor rates, float eps, int size) -> ()",
}
"""Name -> arguments, those that are written marked."""


def kernel(name: str) -> Callable[..., None]:
    """The operator of this name."""
    return _operators()[name]


@functools.cache
def _operators() -> dict[str, Callable[..., None]]:
    """Register all of them, once per process."""
    library = torch.library.Library("worldloom", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in SCHEMAS.items():
        library.define(name + schema)  # type: ignore[no-untyped-call]
        implementations = {
            "CPU": getattr(definitions, name),
            "CUDA": functools.partial(_launch, name),
            "Meta": _nothing,
        }
        for key, run in implementations.items():
            library.impl(name, run, key)  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
    return {name: getattr(torch.ops.worldloom, name) for name in SCHEMAS}


_LIBRARIES: list[torch.library.Library] = []
"""Operators live as long as their library."""


def _launch(name: str, *args: Any) -> None:
    getattr(importlib.import_module(LAUNCHES), name)(*args)


def _nothing(*args: Any) -> None:
    """Without values there is nothing to write."""
