"""A nested state as two parts: a skeleton that is JSON, and its tensors by their path in it.

    {"model": {"w": tensor}, "steps": 3}  <->  {"model": {"w": MARK "/model/w"}, "steps": 3}
                                               {"/model/w": tensor}

A checkpoint writes the two to files, a mirror to shared memory; nothing in either
needs pickle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError

__all__ = ["join_tree", "split_tree"]

TENSOR = "__tensor__"
ARRAY = "__array__"
TUPLE = "__tuple__"
FLOAT = "__float__"
INT = "__int__"


def split_tree(tree: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The skeleton of a tree, and its tensors; those are the tree's own, not copies.

    Args:
        tree: Nested dicts, lists and tuples of tensors, numpy arrays, and JSON scalars.

    Raises:
        CheckpointError: If it holds something that cannot be stored without pickle (names where).

    Example:
        >>> split_tree({"steps": 3, "w": torch.zeros(2)})
        ({'steps': 3, 'w': {'__tensor__': '/w'}}, {'/w': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _strip(tree, "", tensors), tensors


def join_tree(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`split_tree`; what it returns has the tensors that were given."""
    if isinstance(skeleton, dict):
        if TENSOR in skeleton:
            return tensors[skeleton[TENSOR]]
        if ARRAY in skeleton:
            return tensors[skeleton[ARRAY]].numpy()
        if FLOAT in skeleton:
            return float(skeleton[FLOAT])
        if TUPLE in skeleton:
            return tuple(join_tree(item, tensors) for item in skeleton[TUPLE])
        return {
            int(k[len(INT) :]) if k.startswith(INT) else k: join_tree(v, tensors)
            for k, v in skeleton.items()
        }
    if isinstance(skeleton, list):
        return [join_tree(item, tensors) for item in skeleton]
    return skeleton


def _strip(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by marks; what remains is JSON."""
    if isinstance(node, Tensor | np.ndarray):
        if path in tensors:
            raise CheckpointError(
                f"checkpoint: two entries would be stored as {path}; give one another key"
            )
        tensors[path] = node.detach() if isinstance(node, Tensor) else _as_tensor(node, path)
        return {TENSOR if isinstance(node, Tensor) else ARRAY: path}
    if isinstance(node, Mapping):
        if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in node):
            raise CheckpointError(
                f"checkpoint: keys of {path or 'the tree'} must be text or integers, "
                f"got {list(node)[:3]}"
            )
        return {
            INT + str(k) if isinstance(k, int) else k: _strip(v, f"{path}/{k}", tensors)
            for k, v in node.items()
        }
    if isinstance(node, list | tuple):
        items = [_strip(item, f"{path}/{index}", tensors) for index, item in enumerate(node)]
        return {TUPLE: items} if isinstance(node, tuple) else items
    if isinstance(node, np.generic):
        node = node.item()
    if isinstance(node, float) and not math.isfinite(node):
        return {FLOAT: str(node)}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise CheckpointError(
        f"checkpoint: {path} is a {type(node).__name__}, which cannot be stored without pickle"
    )


def _as_tensor(array: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint: {path} is an array of {array.dtype}, which cannot be stored; store "
            "numbers, or a list of texts"
        ) from error
