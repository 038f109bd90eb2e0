"""Gymnasium spaces as JSON, so that who acts later needs no env to know what it takes and gives.

Bounds that are all equal are one number, infinite ones the texts ``inf`` and ``-inf``. Subclasses
of a space are written as the space that they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.specs import ACTION, OBS

__all__ = ["space_from_json", "space_to_json", "spaces_to_json"]


def spaces_to_json(obs: spaces.Space[Any], action: spaces.Space[Any]) -> dict[str, Any]:
    """The two spaces of an env, as ``EnvSpec.spaces`` has them."""
    return {OBS: space_to_json(obs), ACTION: space_to_json(action)}


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A description of a space; :func:`space_from_json` makes an equal space of it.

    Raises:
        TypeError: If the space is of a kind that no agent here can use.
    """
    if isinstance(space, spaces.Dict):
        return {
            "kind": "Dict",
            "parts": [[key, space_to_json(part)] for key, part in space.spaces.items()],
        }
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_to_json(part) for part in space.spaces]}
    dtype = str(np.dtype(space.dtype))
    if isinstance(space, spaces.Box):
        return {
            "kind": "Box",
            "shape": [int(axis) for axis in space.shape],
            "dtype": dtype,
            "low": _numbers(np.where(space.bounded_below, space.low, -np.inf), space.low),
            "high": _numbers(np.where(space.bounded_above, space.high, np.inf), space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "kind": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": np.asarray(space.start).tolist(),
            "dtype": dtype,
        }
    if isinstance(space, spaces.MultiBinary):
        n = int(space.n) if isinstance(space.n, int | np.integer) else list(map(int, space.n))
        return {"kind": "MultiBinary", "n": n}
    raise TypeError(f"{type(space).__name__} has no description")


def space_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """Inverse of :func:`space_to_json`.

    Raises:
        KeyError, TypeError, ValueError: If it is no description of a space.
    """
    kind = data["kind"]
    if kind == "Dict":
        return spaces.Dict([(key, space_from_json(part)) for key, part in data["parts"]])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in data["parts"]])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    dtype: Any = np.dtype(data["dtype"]).type
    if kind == "Box":
        return _box(data, tuple(data["shape"]), dtype)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"], dtype=dtype)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            np.array(data["nvec"], dtype), dtype=dtype, start=np.array(data["start"], dtype)
        )
    raise ValueError(f"there is no space {kind!r}")


def _numbers(marked: np.ndarray, exact: np.ndarray) -> Any:
    """Bounds as nested lists, or one number if all are equal; ``marked`` says where one is
    infinite, ``exact`` has the others in the space's dtype.
    """
    if exact.size and (exact == exact.flat[0]).all() and (marked == marked.flat[0]).all():
        return _number(marked.flat[0], exact.flat[0])
    flat = [_number(*pair) for pair in zip(marked.flat, exact.flat, strict=True)]
    nested: Any = np.array(flat, object).reshape(exact.shape).tolist()
    return nested


def _number(marked: Any, exact: Any) -> Any:
    return exact.item() if math.isfinite(marked) else str(float(marked))


def _box(data: Mapping[str, Any], shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    """A Box; of one of integers Gymnasium remembers apart from the bounds which are infinite."""
    bounds = {}
    finite = {}
    for name in ("low", "high"):
        found = np.broadcast_to(np.array(data[name], object), shape)
        finite[name] = np.array([not isinstance(x, str) for x in found.flat], bool).reshape(shape)
        bounds[name] = np.array([_value(x, dtype) for x in found.flat], dtype).reshape(shape)
    box = spaces.Box(bounds["low"], bounds["high"], shape, dtype)
    box.bounded_below &= finite["low"]
    box.bounded_above &= finite["high"]
    return box


def _value(data: Any, dtype: Any) -> Any:
    if not isinstance(data, str) or np.dtype(dtype).kind == "f":
        return float(data) if isinstance(data, str) else data
    limits = np.iinfo(dtype)
    return limits.min if data.startswith("-") else limits.max
