"""Gymnasium's spaces as RLlib describes them in its files (``gym_space_to_dict``), read without
pickle, which RLlib itself allows there.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["space_from_rllib", "space_to_rllib"]

MOST_BYTES = 1 << 28
"""Of the bounds of a space, unpacked; of one that claims more the end is missing."""


def space_to_rllib(space: Any) -> dict[str, Any]:
    """Describe a space of a run's rows: Box, Discrete, MultiDiscrete, or a Dict of them."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {
            "space": "dict",
            "spaces": {key: space_to_rllib(part) for key, part in space.spaces.items()},
        }
    if isinstance(space, spaces.Discrete):
        return {"space": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "space": "multi-discrete",
            "nvec": _text(space.nvec),
            "dtype": np.dtype(space.dtype).str,
        }
    return {
        "space": "box",
        "low": _text(space.low),
        "high": _text(space.high),
        "shape": list(space.shape),
        "dtype": space.dtype.str,
    }


def space_from_rllib(found: Mapping[str, Any]) -> Any:
    """The space that was described.

    Raises:
        KeyError, TypeError, ValueError, zlib.error: If it is of another kind, or damaged.
    """
    from gymnasium import spaces

    kind = found["space"]
    if kind == "box":
        low, high = _numbers(found["low"]), _numbers(found["high"])
        return spaces.Box(low, high, tuple(found["shape"]), np.dtype(found["dtype"]).type)
    if kind == "discrete":
        return spaces.Discrete(int(found["n"]), start=int(found.get("start", 0)))
    if kind == "multi-discrete":
        return spaces.MultiDiscrete(_numbers(found["nvec"]).astype(np.int64))
    if kind == "multi-binary":
        return spaces.MultiBinary(found["n"])
    if kind == "dict":
        return spaces.Dict({key: space_from_rllib(part) for key, part in found["spaces"].items()})
    if kind == "tuple":
        return spaces.Tuple([space_from_rllib(part) for part in found["spaces"]])
    raise ValueError(f"a space of kind {kind!r}")


def _text(numbers: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, numbers)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _numbers(text: str) -> np.ndarray:
    packed = zlib.decompressobj().decompress(base64.b64decode(text), MOST_BYTES)
    numbers: np.ndarray = np.load(io.BytesIO(packed), allow_pickle=False)
    return numbers
