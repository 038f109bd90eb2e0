"""JSON that every reader understands: Python would write NaN and Infinity, which JSON does not
have.
"""

from __future__ import annotations

import json
from typing import Any

from worldloom.core.files import finite_json

__all__ = ["to_json"]


def to_json(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON text; a number that is not finite becomes ``null``.

    Example:
        >>> to_json({"loss": float("nan"), "lengths": (3, 4)})
        '{"loss": null, "lengths": [3, 4]}'
    """
    return json.dumps(finite_json(data), indent=indent, allow_nan=False)
