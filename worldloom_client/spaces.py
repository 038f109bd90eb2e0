"""Between a Gymnasium env and the arrays that a policy sees and chooses: the env's own keys, bounds
and dtypes on one side, float32 numbers, images and classes on the other.

Knows the names of Gymnasium's spaces and imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldloom_client.errors import ClientError
from worldloom_client.wire import Spec

__all__ = ["ActionConverter", "ObsConverter"]

ALLOWED = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them"


class ObsConverter:
    """From an env's observations to the policy's.

    Args:
        space: The env's observation space.
        specs: What the policy sees.

    Raises:
        ClientError: If the two do not fit, in a sentence that names the key.
    """

    def __init__(self, space: Any, specs: Sequence[Spec]) -> None:
        self._leaves = _leaves(space, "obs", specs)
        self._is_dict = _kind(space) == "Dict"
        for spec, leaf in self._leaves:
            found = self._convert(spec, leaf, _sample(leaf))
            if found.shape != spec.shape:
                raise ClientError(
                    f"obs {spec.name!r}: the env gives {_told(leaf)}, and the policy sees "
                    f"{spec.dtype} of shape {spec.shape}; use the env that it was trained in, "
                    "with its wrappers"
                )

    def __call__(self, obs: Any) -> dict[str, np.ndarray]:
        """One observation, by the policy's keys.

        Raises:
            ClientError: If it is not what the space promises.
        """
        return {
            spec.name: self._convert(spec, leaf, obs[spec.name] if self._is_dict else obs)
            for spec, leaf in self._leaves
        }

    def _convert(self, spec: Spec, leaf: Any, value: Any) -> np.ndarray:
        array = np.asarray(value)
        kind = _kind(leaf)
        if kind in ("Discrete", "MultiDiscrete"):
            return _one_hot(spec, leaf, array)
        if spec.dtype == "uint8":
            return _image(spec, array)
        if array.dtype.kind not in "biuf":
            raise ClientError(f"obs {spec.name!r}: got {array.dtype}, expected real numbers")
        numbers: np.ndarray = array.astype(spec.dtype)
        return numbers


class ActionConverter:
    """From the policy's actions to an env's, and back.

    Args:
        space: The env's action space.
        specs: What the policy chooses.

    Raises:
        ClientError: If the two do not fit, in a sentence that names the key.
    """

    def __init__(self, space: Any, specs: Sequence[Spec]) -> None:
        self._leaves = _leaves(space, "action", specs)
        self._is_dict = _kind(space) == "Dict"
        for spec, leaf in self._leaves:
            _check_action(spec, leaf)

    def __call__(self, action: Mapping[str, np.ndarray]) -> Any:
        """One action, as the env takes it."""
        found = {spec.name: _native(spec, leaf, action[spec.name]) for spec, leaf in self._leaves}
        return found if self._is_dict else next(iter(found.values()))

    def inverse(self, native: Any) -> dict[str, np.ndarray]:
        """What the policy would have said for an action of the env; clipped to [-1, 1]."""
        return {
            spec.name: _policy_action(spec, leaf, native[spec.name] if self._is_dict else native)
            for spec, leaf in self._leaves
        }


def _leaves(space: Any, group: str, specs: Sequence[Spec]) -> list[tuple[Spec, Any]]:
    if _kind(space) != "Dict":
        if len(specs) != 1 or specs[0].name != group:
            names = ", ".join(spec.name for spec in specs)
            raise ClientError(
                f"{group}: the policy has the keys {names}, and the env one {_told(space)}; use "
                "the env that it was trained in"
            )
        return [(specs[0], _allowed(space, group, group))]
    wanted = {spec.name for spec in specs}
    if set(space.spaces) != wanted:
        raise ClientError(
            f"{group}: the env has the keys {sorted(space.spaces)}, and the policy "
            f"{sorted(wanted)}; use the env that it was trained in"
        )
    return [(spec, _allowed(space.spaces[spec.name], group, spec.name)) for spec in specs]


def _kind(space: Any) -> str:
    """Of Gymnasium's spaces the one that this is, or is derived from."""
    for base in type(space).__mro__:
        if base.__module__.startswith("gymnasium.spaces"):
            return base.__name__
    return type(space).__name__


def _allowed(space: Any, group: str, key: str) -> Any:
    if _kind(space) not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"):
        raise ClientError(f"{group} {key!r}: {_told(space)} is not supported; use {ALLOWED}")
    return space


def _told(space: Any) -> str:
    return " ".join(str(space).split())[:120]


def _sample(space: Any) -> np.ndarray:
    """An array like those of the space."""
    start = getattr(space, "start", 0)
    sample: np.ndarray = np.zeros(space.shape, space.dtype) + np.asarray(start, space.dtype)
    return sample


def _one_hot(spec: Spec, space: Any, value: np.ndarray) -> np.ndarray:
    sizes = np.atleast_1d(np.asarray(getattr(space, "nvec", getattr(space, "n", 0)))).reshape(-1)
    index = value.reshape(-1).astype(np.int64) - np.asarray(space.start).reshape(-1)
    if value.dtype.kind not in "biu" or index.shape != sizes.shape:
        raise ClientError(f"obs {spec.name!r}: got {value!r}, expected one of {_told(space)}")
    if ((index < 0) | (index >= sizes)).any():
        raise ClientError(f"obs {spec.name!r}: got {value.tolist()}, outside of {_told(space)}")
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    result = np.zeros(int(sizes.sum()), spec.dtype)
    result[index + offsets] = 1
    return result


def _image(spec: Spec, value: np.ndarray) -> np.ndarray:
    if value.dtype != np.uint8:
        raise ClientError(f"obs {spec.name!r}: got {value.dtype}, expected uint8 from 0 to 255")
    if value.shape == spec.shape:
        return value
    if (*value.shape, 1) == spec.shape:
        return value[..., None]
    if value.ndim == 3 and (*value.shape[1:], value.shape[0]) == spec.shape:
        return np.moveaxis(value, 0, -1)
    return value


def _check_action(spec: Spec, space: Any) -> None:
    kind = _kind(space)
    found: tuple[int, ...] = ()
    if kind == "Discrete":
        found = (int(space.n),)
    elif kind == "MultiDiscrete":
        found = tuple(int(n) for n in np.asarray(space.nvec).reshape(-1))
    elif kind == "MultiBinary":
        found = (2,) * int(np.prod(space.shape))
    if found != spec.num_classes or tuple(space.shape) != spec.shape:
        classes = f" of {list(spec.num_classes)}" if spec.num_classes else ""
        raise ClientError(
            f"action {spec.name!r}: the env takes {_told(space)}, and the policy gives "
            f"{spec.dtype} of shape {spec.shape}{classes}; use the env that it was trained in"
        )


def _scales(space: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which components have two finite bounds, and half of their width and of their sum."""
    bounded = np.asarray(space.bounded_below & space.bounded_above)
    bounded = bounded & (np.abs(space.low) < 1e38) & (np.abs(space.high) < 1e38)
    low = np.where(bounded, space.low, -1).astype(np.float64)
    high = np.where(bounded, space.high, 1).astype(np.float64)
    return bounded, high / 2 - low / 2, high / 2 + low / 2


def _native(spec: Spec, space: Any, action: np.ndarray) -> Any:
    dtype = np.dtype(space.dtype)
    if spec.num_classes:
        chosen = np.asarray(action + np.asarray(getattr(space, "start", 0))).astype(dtype)
        return chosen if chosen.ndim else chosen[()]
    _, scale, shift = _scales(space)
    unit = np.clip(action, -1.0, 1.0)
    value = np.clip(unit * scale + shift, space.low, space.high)
    value = np.where(unit == 1.0, np.clip(scale + shift, space.low, space.high), value)
    return (np.rint(value) if dtype.kind in "iu" else value).astype(dtype)


def _policy_action(spec: Spec, space: Any, native: Any) -> np.ndarray:
    value = np.asarray(native)
    if spec.num_classes:
        return np.asarray(value - np.asarray(getattr(space, "start", 0))).astype(spec.dtype)
    _, scale, shift = _scales(space)
    unit = np.where(scale > 0, (value - shift) / np.where(scale > 0, scale, 1.0), 0.0)
    return np.clip(unit, -1.0, 1.0).astype(spec.dtype)
