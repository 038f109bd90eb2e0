"""JSON that every reader understands: Python would write NaN and Infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["to_json"]


def to_json(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON text; a number that is not finite becomes ``null``.

    Example:
        >>> to_json({"loss": float("nan"), "lengths": (3, 4)})
        '{"loss": null, "lengths": [3, 4]}'
    """
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    return [_finite(item) for item in node] if isinstance(node, list | tuple) else node
