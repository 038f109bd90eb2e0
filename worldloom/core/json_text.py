"""JSON that every reader understands, and a reader that fails in one way: Python would write NaN
and Infinity, which JSON does not have, and a text that is nested deeply ends its parser otherwise
than a wrong one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldloom.core.plain_files import read_plain

NUMBERS = re.compile(r"\[\n\s*(?:-?[\d.eE+-]+|null),?(?:\s+(?:-?[\d.eE+-]+|null),?)*\s*\]")
"""A list of numbers that is written over several lines. No text in quotes has a line's end."""

__all__ = ["finite_json", "parse_json", "read_object", "to_json"]


def to_json(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON text; a number that is not finite becomes ``null``. With an indent, a list of
    numbers stays on one line.

    Example:
        >>> to_json({"loss": float("nan"), "lengths": (3, 4)})
        '{"loss": null, "lengths": [3, 4]}'
    """
    text = json.dumps(finite_json(data), indent=indent, allow_nan=False)
    return text if indent is None else NUMBERS.sub(_on_one_line, text)


def _on_one_line(found: re.Match[str]) -> str:
    return re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; its numbers are finite.

    Raises:
        ValueError: If it is none, whatever is wrong with it.
    """
    try:
        return DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read, or is no regular file of a size that JSON is written in.
        ValueError: If it holds something else.
    """
    found = parse_json(read_plain(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not a JSON object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text}, which is no finite number")
    return value


DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


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
