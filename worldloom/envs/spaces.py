"""From Gymnasium spaces to flat mappings of arrays, and back for actions. Gymnasium is imported here, torch is not.

Every function accepts any leading axes, so that single envs (none) and vector envs ([N]) use the same code.

Observations: uint8 images (rank 3, or rank 2 of at least 32 x 32) become HWC uint8, and numbers that are no uint8 are refused
instead of cut; Discrete and MultiDiscrete become one-hot float32 vectors; everything else becomes float32. Arrays without elements
are dropped.
Actions: continuous ones are [-1, 1] outside and rescaled to finite bounds inside; discrete ones are int32 counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, ShapeMismatchError
from worldloom.core.specs import ACTION, OBS, ArraySpec, all_finite

__all__ = ["ActionMapper", "ObsMapper", "find", "walk"]

MIN_IMAGE_SIDE = 32
MAX_CHANNELS = 16
UINT8 = np.dtype(np.uint8)
LOWEST, HIGHEST = np.array(-1, np.float32), np.array(1, np.float32)  # arrays, because numpy converts a number at every call
Converter = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One array of a space: where it is found, what it becomes."""

    path: tuple[str | int, ...]
    native_shape: tuple[int, ...]
    spec: ArraySpec
    convert: Converter


class ObsMapper:
    """Turns observations of one space into a flat mapping.

    Args:
        space: The space of a single env.

    Raises:
        ConfigurationError: If the space holds something that is not an array of fixed size.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        found = {key: _obs_leaf(path, leaf) for key, path, leaf in walk(space, OBS)}
        leaves = {key: leaf for key, leaf in sorted(found.items()) if leaf.spec.size}
        if not leaves:
            raise ConfigurationError(f"observation space {space} holds no array; give the env something to observe")
        self.specs: dict[str, ArraySpec] = {key: leaf.spec for key, leaf in leaves.items()}
        self._ways = [(key, leaf.path, leaf.native_shape, leaf.convert, leaf.spec.dtype == "uint8") for key, leaf in leaves.items()]

    def __call__(self, obs: Any, lead: tuple[int, ...] = (), *, check_finite: bool = True) -> dict[str, np.ndarray]:
        """Convert and check one observation.

        Args:
            obs: As the space describes it, with the leading axes ``lead``.
            lead: Leading axes.
            check_finite: False when the caller checks many observations at once.

        Raises:
            ShapeMismatchError: If an array has not the shape that its space promises.
            EnvFailureError: If a number is NaN or infinite, or an image holds what is no uint8.
        """
        result = {}
        for key, path, shape, convert, is_image in self._ways:
            value = np.asarray(find(obs, path) if path else obs)
            if value.shape != lead + shape:
                raise ShapeMismatchError(f"observation {key!r}", lead + shape, value.shape)
            if is_image and value.dtype != UINT8:
                value = _whole_bytes(key, value)
            array = convert(value)
            if check_finite and not is_image and not all_finite(array):
                raise EnvFailureError(f"observation {key!r} holds a number that is not finite")
            result[key] = array
        return result


class ActionMapper:
    """Turns flat actions into what the env's ``step`` takes.

    Args:
        space: The action space of a single env.

    Raises:
        ConfigurationError: If the space holds something that is neither continuous nor a choice among classes.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        self._leaves = {key: _action_leaf(path, leaf) for key, path, leaf in walk(space, ACTION)}
        self.specs: dict[str, ArraySpec] = {key: self._leaves[key].spec for key in sorted(self._leaves)}
        self._is_one_array = all(leaf.path == () for leaf in self._leaves.values())

    def __call__(self, action: Mapping[str, np.ndarray], lead: tuple[int, ...] = ()) -> Any:
        """Convert one action (with the leading axes ``lead``).

        Raises:
            ShapeMismatchError: If a key is missing or an array has the wrong shape.
        """
        native: dict[tuple[str | int, ...], Any] = {}
        for key, leaf in self._leaves.items():
            if key not in action:
                raise ShapeMismatchError("keys of an action", sorted(self._leaves), sorted(action))
            value = np.asarray(action[key])
            if value.shape != lead + leaf.spec.shape:
                raise ShapeMismatchError(f"action {key!r}", lead + leaf.spec.shape, value.shape)
            native[leaf.path] = leaf.convert(value)
        return native[()] if () in native else _nest(self._space, native, ())

    def inverse(self, native: Any, lead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
        """Flat actions from native ones (with the leading axes ``lead``), for rows that were recorded elsewhere.

        Raises:
            ShapeMismatchError: If an array has the wrong shape.
        """
        result = {}
        for key, leaf in self._leaves.items():
            value = np.asarray(find(native, leaf.path))
            if value.shape != (*lead, *leaf.native_shape):
                raise ShapeMismatchError(f"native action {key!r}", (*lead, *leaf.native_shape), value.shape)
            flat: np.ndarray = leaf.convert.inverse(value)  # type: ignore[attr-defined]
            result[key] = flat.astype(leaf.spec.dtype)
        return result

    def rows(self, action: Mapping[str, np.ndarray], count: int) -> Sequence[Any]:
        """``[count, ...]`` actions as ``count`` native ones; a space that is one array is converted in one go.

        Raises:
            ShapeMismatchError: As for a single action.
        """
        if self._is_one_array:
            native: Sequence[Any] = self(action, (count,))
            return native
        return [self({key: value[index] for key, value in action.items()}) for index in range(count)]


def walk(space: Any, name: str, path: tuple[str | int, ...] = ()) -> list[tuple[str, tuple[str | int, ...], Any]]:
    """(key, path, leaf) of every leaf; keys of nested spaces are joined by a slash."""
    if isinstance(space, spaces.Dict):
        parts: list[tuple[str | int, Any]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return [("/".join(map(str, path)) or name, path, space)]
    return [leaf for part, inner in parts for leaf in walk(inner, name, (*path, part))]


def find(value: Any, path: tuple[str | int, ...]) -> Any:
    """The array at the path of a leaf."""
    for part in path:
        value = value[part]
    return value


def _nest(space: Any, native: Mapping[tuple[str | int, ...], Any], path: tuple[str | int, ...]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nest(inner, native, (*path, key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(inner, native, (*path, index)) for index, inner in enumerate(space.spaces))
    return native[path]


def _obs_leaf(path: tuple[str | int, ...], space: Any) -> _Leaf:
    if isinstance(space, spaces.Discrete):
        nvec, start = np.array([space.n]), np.array([space.start])
        return _Leaf(path, (), ArraySpec((int(space.n),)), _OneHot(nvec, start, rank=0))
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.reshape(-1), np.asarray(space.start).reshape(-1)
        return _Leaf(path, space.shape, ArraySpec((int(nvec.sum()),)), _OneHot(nvec, start, rank=len(space.shape)))
    if isinstance(space, spaces.MultiBinary | spaces.Box):
        shape, dtype = tuple(space.shape or ()), space.dtype
        if dtype != np.uint8 or isinstance(space, spaces.MultiBinary):
            return _Leaf(path, shape, ArraySpec(shape), _to_float32)
        if len(shape) == 2 and min(shape) >= MIN_IMAGE_SIDE:
            return _Leaf(path, shape, ArraySpec((*shape, 1), "uint8"), _add_channel)
        if len(shape) == 3 and shape[0] <= MAX_CHANNELS < min(shape[1:]):
            return _Leaf(path, shape, ArraySpec((*shape[1:], shape[0]), "uint8"), _channel_last)
        if len(shape) == 3:
            return _Leaf(path, shape, ArraySpec(shape, "uint8"), _same)
        return _Leaf(path, shape, ArraySpec(shape), _to_float32)
    raise ConfigurationError(f"observation space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary or a Dict")


def _action_leaf(path: tuple[str | int, ...], space: Any) -> _Leaf:
    if isinstance(space, spaces.Discrete):
        spec = ArraySpec((), "int32", (int(space.n),))
        return _Leaf(path, (), spec, _Choice(np.array(space.start), space.dtype))
    if isinstance(space, spaces.MultiDiscrete):
        spec = ArraySpec(tuple(space.shape), "int32", tuple(int(n) for n in space.nvec.reshape(-1)))
        return _Leaf(path, space.shape, spec, _Choice(np.asarray(space.start), space.dtype))
    if isinstance(space, spaces.MultiBinary):
        shape = tuple(space.shape)
        return _Leaf(path, shape, ArraySpec(shape, "int32", (2,) * int(np.prod(shape))), _Choice(np.array(0), space.dtype))
    if isinstance(space, spaces.Box):
        return _Leaf(path, space.shape, ArraySpec(tuple(space.shape)), _Rescale(space))
    raise ConfigurationError(
        f"action space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them"
    )


def _whole_bytes(key: str, image: np.ndarray) -> np.ndarray:
    """An image of another dtype as uint8; floats may mean [0, 1], so they are refused whatever they hold."""
    if image.dtype.kind not in "iu":
        raise EnvFailureError(f"image {key!r} is {image.dtype} and its space says uint8; return np.uint8 from 0 to 255")
    low, high = int(image.min()), int(image.max())
    if low < 0 or high > 255:
        raise EnvFailureError(
            f"image {key!r} holds numbers from {low} to {high} and its space says uint8; return np.uint8 from 0 to 255"
        )
    return image.astype(UINT8)


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _to_float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32, copy=False)


def _add_channel(value: np.ndarray) -> np.ndarray:
    return value[..., None]


def _channel_last(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, -3, -1)


class _OneHot:
    """Classes -> one-hot vectors, concatenated over the components."""

    def __init__(self, nvec: np.ndarray, start: np.ndarray, *, rank: int) -> None:
        self._nvec, self._start, self._rank = nvec, start, rank
        self._offset = np.concatenate([[0], np.cumsum(nvec)[:-1]])

    def __call__(self, value: np.ndarray) -> np.ndarray:
        lead = value.shape[: value.ndim - self._rank]
        index = value.reshape(*lead, self._nvec.size) - self._start
        if np.any((index < 0) | (index >= self._nvec)):
            raise EnvFailureError(f"observation {value.tolist()} lies outside its discrete space")
        result = np.zeros((*lead, int(self._nvec.sum())), np.float32)
        np.put_along_axis(result, (index + self._offset).astype(np.int64), 1.0, axis=-1)
        return result


class _Choice:
    """Classes counted from 0 -> the env's own numbers and dtype."""

    def __init__(self, start: np.ndarray, dtype: Any) -> None:
        self._start, self._dtype = start, np.dtype(dtype)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        native: np.ndarray = (value + self._start).astype(self._dtype)
        return native if native.ndim else native[()]

    def inverse(self, native: np.ndarray) -> np.ndarray:
        """The env's own numbers -> classes counted from 0."""
        flat: np.ndarray = native - self._start
        return flat


class _Rescale:
    """[-1, 1] -> the bounds of a Box; components without two finite bounds are not scaled."""

    def __init__(self, space: spaces.Box) -> None:
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        finite = np.isfinite(low) & np.isfinite(high)
        self._scale = np.where(finite, (np.where(finite, high, 1) - np.where(finite, low, 0)) / 2, 1.0)
        self._shift = np.where(finite, (np.where(finite, high, 0) + np.where(finite, low, 0)) / 2, 0.0)
        self._low, self._high, self._dtype = low, high, np.dtype(space.dtype)
        self._is_unit = bool(np.all((low == -1) & (high == 1))) and self._dtype.kind == "f"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        unit = np.minimum(np.maximum(value, LOWEST), HIGHEST)
        if not self._is_unit:
            unit = np.minimum(np.maximum(unit * self._scale + self._shift, self._low), self._high)
        native: np.ndarray = (np.rint(unit) if self._dtype.kind in "iu" else unit).astype(self._dtype, copy=False)
        return native

    def inverse(self, native: np.ndarray) -> np.ndarray:
        """The bounds of a Box -> [-1, 1], not clipped; a component whose two bounds are equal is 0."""
        unit: np.ndarray = np.where(self._scale > 0, (native - self._shift) / np.where(self._scale > 0, self._scale, 1.0), 0.0)
        return unit
