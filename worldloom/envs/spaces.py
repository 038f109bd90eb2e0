"""From Gymnasium spaces to flat mappings of arrays, and back for actions. Gymnasium is imported
here, torch is not.

Every function accepts any leading axes, so that single envs (none) and vector envs ([N]) use the
same code.

Observations: uint8 images (``worldloom.core.images`` says which arrays are images) become [Y, X,
channels] uint8, a stack of images one image whose channels are those of all of them, and numbers
that are no uint8 are refused instead of cut; Discrete and MultiDiscrete become one-hot float32
vectors; everything else becomes float32. Arrays without elements are dropped. Actions: continuous
ones are [-1, 1] outside and rescaled to finite bounds inside; discrete ones are int32 counted from
0. Arrays without elements are filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, ShapeMismatchError
from worldloom.core.specs import ACTION, OBS, ArraySpec, all_finite
from worldloom.envs.contract import describe
from worldloom.envs.leaves import action_leaf, obs_leaf

__all__ = ["ActionMapper", "ObsMapper", "find", "not_finite", "walk"]

Path = tuple[str | int, ...]


class ObsMapper:
    """Turns observations of one space into a flat mapping.

    Args:
        space: The space of a single env.

    Attributes:
        specs: Per key, what it becomes.
        frames: Per image key, how many images are stacked in it.
        remarks: What a person should know of how the observations are read.

    Raises:
        ConfigurationError: If the space holds something that is not an array of fixed size, or two
            arrays under one key.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        found = {key: obs_leaf(key, path, leaf) for key, path, leaf in walk(space, OBS)}
        leaves = {key: leaf for key, leaf in sorted(found.items()) if leaf.spec.size}
        if not leaves:
            raise ConfigurationError(
                f"observation space {space} holds no array; give the env something to observe"
            )
        self.specs: dict[str, ArraySpec] = {key: leaf.spec for key, leaf in leaves.items()}
        self.frames = {key: leaf.frames for key, leaf in leaves.items() if leaf.spec.is_image}
        self.remarks = [leaf.remark for leaf in leaves.values() if leaf.remark]
        self._ways = [
            (key, leaf.path, leaf.native_shape, leaf.convert, leaf.spec.dtype == "uint8")
            for key, leaf in leaves.items()
        ]

    def __call__(
        self, obs: Any, lead: tuple[int, ...] = (), *, check_finite: bool = True
    ) -> dict[str, np.ndarray]:
        """Convert and check one observation.

        Args:
            obs: As the space describes it, with the leading axes ``lead``.
            lead: Leading axes.
            check_finite: False when the caller checks many observations at once.

        Raises:
            ShapeMismatchError: If an array has not the shape that its space promises.
            EnvFailureError: If an array is missing or none, a number is NaN or not finite in
                float32, or an image holds what is no uint8.
        """
        result = {}
        for key, path, shape, convert, is_image in self._ways:
            value = _array(key, path, obs)
            if value.shape != lead + shape:
                if value.dtype == object:
                    raise EnvFailureError(
                        f"observation {key!r} is {describe(_found(key, path, obs))}; "
                        f"return an array of {lead + shape}"
                    )
                raise ShapeMismatchError(f"observation {key!r}", lead + shape, value.shape)
            array = convert(value)
            if check_finite and not is_image and not all_finite(array):
                raise EnvFailureError(not_finite(key, array))
            result[key] = array
        return result


class ActionMapper:
    """Turns flat actions into what the env's ``step`` takes.

    Args:
        space: The action space of a single env.

    Raises:
        ConfigurationError: If the space holds something that is neither continuous nor a choice
            among classes, two arrays under one key, or nothing to choose.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        found = {key: action_leaf(key, path, leaf) for key, path, leaf in walk(space, ACTION)}
        self._leaves = {key: leaf for key, leaf in found.items() if leaf.spec.size}
        if not self._leaves:
            raise ConfigurationError(
                f"action space {space} leaves nothing to choose; give it one component at least"
            )
        self._empty = [leaf for leaf in found.values() if not leaf.spec.size]
        self.specs: dict[str, ArraySpec] = {
            key: self._leaves[key].spec for key in sorted(self._leaves)
        }
        only = next(iter(self._leaves.values()))
        # Of a row of numbers an element is a number, which Discrete takes and a Box without axes
        # does not.
        self._is_one_array = only.path == () and (only.spec.is_discrete or bool(only.spec.shape))

    def __call__(self, action: Mapping[str, np.ndarray], lead: tuple[int, ...] = ()) -> Any:
        """Convert one action (with the leading axes ``lead``); the arrays of the result are no one
        else's.

        Raises:
            ShapeMismatchError: If a key is missing or an array has the wrong shape.
        """
        native: dict[Path, Any] = {}
        for key, leaf in self._leaves.items():
            if key not in action:
                raise ShapeMismatchError("keys of an action", sorted(self._leaves), sorted(action))
            value = np.asarray(action[key])
            if value.shape != lead + leaf.spec.shape:
                raise ShapeMismatchError(f"action {key!r}", lead + leaf.spec.shape, value.shape)
            native[leaf.path] = leaf.convert(value)
        for leaf in self._empty:
            native[leaf.path] = leaf.convert(leaf.spec.zeros(*lead))
        return native[()] if () in native else _nest(self._space, native, ())

    def inverse(self, native: Any, lead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
        """Flat actions from native ones (with the leading axes ``lead``), for rows that were
        recorded elsewhere.

        Raises:
            ShapeMismatchError: If an array has the wrong shape.
        """
        result = {}
        for key, leaf in self._leaves.items():
            value = np.asarray(find(native, leaf.path))
            if value.shape != (*lead, *leaf.native_shape):
                raise ShapeMismatchError(
                    f"native action {key!r}", (*lead, *leaf.native_shape), value.shape
                )
            result[key] = leaf.convert.inverse(value).astype(leaf.spec.dtype)
        return result

    def rows(self, action: Mapping[str, np.ndarray], count: int) -> Sequence[Any]:
        """``[count, ...]`` actions as ``count`` native ones; a space that is one array is converted
        in one go.

        Raises:
            ShapeMismatchError: As for a single action.
        """
        if self._is_one_array:
            native: Sequence[Any] = self(action, (count,))
            return native
        return [
            self({key: value[index] for key, value in action.items()}) for index in range(count)
        ]


def walk(space: Any, name: str) -> list[tuple[str, Path, Any]]:
    """(key, path, leaf) of every leaf; keys of nested spaces are joined by a slash.

    Raises:
        ConfigurationError: If two leaves get the same key.
    """
    leaves = _walk(space, name, ())
    paths: dict[str, Path] = {}
    for key, path, _ in leaves:
        if key in paths:
            raise ConfigurationError(
                f"{name} key {key!r} would be made twice, of {_spell(paths[key])} and "
                f"of {_spell(path)}; rename one of them"
            )
        paths[key] = path
    return leaves


def _walk(space: Any, name: str, path: Path) -> list[tuple[str, Path, Any]]:
    if isinstance(space, spaces.Dict):
        parts: list[tuple[str | int, Any]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return [("/".join(map(str, path)) or name, path, space)]
    return [leaf for part, inner in parts for leaf in _walk(inner, name, (*path, part))]


def _spell(path: Path) -> str:
    return "".join(f"[{part!r}]" for part in path)


def find(value: Any, path: Path) -> Any:
    """The array at the path of a leaf."""
    for part in path:
        value = value[part]
    return value


def _nest(space: Any, native: Mapping[Path, Any], path: Path) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nest(inner, native, (*path, key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            _nest(inner, native, (*path, index)) for index, inner in enumerate(space.spaces)
        )
    return native[path]


def not_finite(key: str, array: np.ndarray) -> str:
    """What to say of an observation that holds numbers which are not finite in float32; of a vector
    env's the env comes first.
    """
    where = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
    place = f" at {list(where)}" if where else ""
    return (
        f"observation {key!r} holds {array[where]:g}{place}, which is not finite in "
        "float32 (at most 3.4e38 in size); "
        "return finite numbers, scaled inside the env if they are large"
    )


def _array(key: str, path: Path, obs: Any) -> np.ndarray:
    value = _found(key, path, obs) if path else obs
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, arrays on another device
        raise EnvFailureError(
            f"observation {key!r} is {describe(value)}, which is no array of numbers; "
            "return a numpy array"
        ) from error


def _found(key: str, path: Path, obs: Any) -> Any:
    try:
        return find(obs, path)
    except (KeyError, IndexError, TypeError) as error:
        has = (
            f"has the keys {sorted(map(str, obs))}"
            if isinstance(obs, Mapping)
            else f"is {describe(obs)}"
        )
        raise EnvFailureError(
            f"observation lacks {key!r}, which its space promises; it {has}"
        ) from error
