"""Nested dicts and lists of tensors, arrays and numbers, as checkpoints hold them: plain ones, and
equal ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from worldloom.testing.contract import expect

__all__ = ["check_plain", "check_same"]

LEAVES = (torch.Tensor, np.ndarray, np.generic, str, int, float, bool, type(None))


def check_plain(path: str, node: Any) -> None:
    """Refuse what a checkpoint cannot hold."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            expect(isinstance(key, str | int), f"keys of {path}", "text", repr(key))
            check_plain(f"{path}[{key!r}]", value)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            check_plain(f"{path}[{index}]", value)
    else:
        kinds = "tensors, arrays and JSON scalars in dicts and lists"
        expect(isinstance(node, LEAVES), path, kinds, type(node).__name__)


def check_same(what: str, expected: Any, got: Any, path: str = "") -> None:
    """Refuse the first leaf of two trees that differs."""
    label = f"{what} ({path.lstrip('/')})" if path else what
    if isinstance(expected, Mapping):
        keys = (sorted(map(str, expected)), sorted(map(str, got)))
        expect(keys[0] == keys[1], f"keys of {label}", *keys)
        for key in expected:
            check_same(what, expected[key], got[key], f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        expect(len(expected) == len(got), f"length of {label}", len(expected), len(got))
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            check_same(what, one, other, f"{path}/{index}")
    else:
        one, other = (np.asarray(_host(value)) for value in (expected, got))
        is_float = one.dtype.kind == "f" and other.dtype.kind == "f"
        is_same = np.array_equal(one, other, equal_nan=is_float)
        expect(is_same, label, _short(one), _short(other))


def _host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    return value


def _short(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    text = ", ".join(str(number) for number in flat[:4])
    return f"{text}, ... ({array.shape})" if flat.size > 4 else text
