"""JSON that every reader understands: Python would write NaN and Infinity, which JSON does not
have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["finite_json", "read_object", "to_json"]


def to_json(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON text; a number that is not finite becomes ``null``.

    Example:
        >>> to_json({"loss": float("nan"), "lengths": (3, 4)})
        '{"loss": null, "lengths": [3, 4]}'
    """
    return json.dumps(finite_json(data), indent=indent, allow_nan=False)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not a JSON object")
    return found


def finite_json(node: Any) -> Any:
    """JSON values with None (null) in the place of NaN and infinity, which JSON lacks and other
    readers stumble over.

    Numbers of numpy and torch become Python's own.
    """
    if getattr(node, "ndim", None) == 0 and hasattr(node, "item"):
        node = node.item()
    if isinstance(node, float) and not math.isfinite(node):
        return None
    if isinstance(node, Mapping):
        return {key: finite_json(value) for key, value in node.items()}
    return [finite_json(item) for item in node] if isinstance(node, list | tuple) else node
