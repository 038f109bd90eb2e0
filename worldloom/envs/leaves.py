"""The arrays of a Gymnasium space one by one: what each becomes for an agent, and how it is
converted.

A part of ``worldloom.envs.spaces``. Converters accept any leading axes.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.images import ImageLayout, find_image_layout
from worldloom.core.specs import ArraySpec

__all__ = ["ActionLeaf", "Choice", "ObsLeaf", "Rescale", "action_leaf", "has_bounds", "obs_leaf"]

UINT8 = np.dtype(np.uint8)
FLOAT32 = np.dtype(np.float32)
# arrays, because numpy converts a number at every call
LOWEST = np.array(-1, np.float32)
HIGHEST = np.array(1, np.float32)
MAX_CLASSES = 2**20
"""More choices than this make no sensible one-hot vector or softmax."""
NO_BOUND = 1e38
"""A bound of a float Box that is as large as this is meant as infinite: the largest float32 is
3.4e38.
"""
ALLOWED = "Box, Discrete, MultiDiscrete, MultiBinary or a Dict or Tuple of them"
Path = tuple[str | int, ...]


class Converter(Protocol):
    """From an array as the env gives it to the agent's."""

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """``[..., *native_shape]`` -> ``[..., *spec.shape]``."""


class ActionConverter(Protocol):
    """From the agent's array to the env's own, and back."""

    def __call__(self, value: np.ndarray) -> Any:
        """``[..., *spec.shape]`` -> ``[..., *native_shape]``, an array of its own."""

    def inverse(self, native: np.ndarray) -> np.ndarray:
        """The other way."""


@dataclass(frozen=True, slots=True)
class ObsLeaf:
    """One array of an observation.

    Attributes:
        path: Where it is found.
        native_shape: Its shape in the env's observation.
        spec: What it becomes.
        convert: How.
        frames: Images that are stacked in it.
        remark: What a person should know of how it is read; empty when there is nothing.
    """

    path: Path
    native_shape: tuple[int, ...]
    spec: ArraySpec
    convert: Converter
    frames: int = 1
    remark: str = ""


@dataclass(frozen=True, slots=True)
class ActionLeaf:
    """One array of an action (attributes as of :class:`ObsLeaf`)."""

    path: Path
    native_shape: tuple[int, ...]
    spec: ArraySpec
    convert: ActionConverter


def obs_leaf(key: str, path: Path, space: Any) -> ObsLeaf:
    """What a leaf of an observation space becomes.

    Raises:
        ConfigurationError: If it is no array of fixed size.
    """
    if isinstance(space, spaces.Discrete):
        nvec = np.array([_classes("observation", key, space.n)])
        start = np.array([space.start])
        return ObsLeaf(
            path, (), ArraySpec((int(space.n),)), _OneHot(key, space, nvec, start, rank=0)
        )
    if isinstance(space, spaces.MultiDiscrete):
        nvec = space.nvec.reshape(-1)
        start = np.asarray(space.start).reshape(-1)
        total = _classes("observation", key, int(nvec.sum())) if nvec.size else 0
        return ObsLeaf(
            path,
            space.shape,
            ArraySpec((total,)),
            _OneHot(key, space, nvec, start, rank=len(space.shape)),
        )
    if isinstance(space, spaces.MultiBinary):
        return ObsLeaf(path, tuple(space.shape), ArraySpec(tuple(space.shape)), _Flags(key))
    if isinstance(space, spaces.Box):
        return _box_leaf(key, path, space)
    raise ConfigurationError(_unsupported("observation", key, space))


def action_leaf(key: str, path: Path, space: Any) -> ActionLeaf:
    """What a leaf of an action space becomes.

    Raises:
        ConfigurationError: If it is neither continuous nor a choice among classes, or leaves
            nothing to choose.
    """
    if isinstance(space, spaces.Discrete):
        spec = ArraySpec((), "int32", (_classes("action", key, space.n),))
        return ActionLeaf(path, (), spec, Choice(np.array(space.start), space.dtype))
    if isinstance(space, spaces.MultiDiscrete):
        classes = tuple(_classes("action", key, n) for n in space.nvec.reshape(-1))
        return ActionLeaf(
            path,
            space.shape,
            ArraySpec(tuple(space.shape), "int32", classes),
            Choice(np.asarray(space.start), space.dtype),
        )
    if isinstance(space, spaces.MultiBinary):
        shape = tuple(space.shape)
        spec = ArraySpec(shape, "int32", (2,) * int(np.prod(shape)))
        return ActionLeaf(path, shape, spec, Choice(np.array(0), space.dtype))
    if isinstance(space, spaces.Box):
        return ActionLeaf(
            path, tuple(space.shape), ArraySpec(tuple(space.shape)), Rescale(key, space)
        )
    raise ConfigurationError(_unsupported("action", key, space))


def has_bounds(space: spaces.Box) -> np.ndarray:
    """Which components of a Box have two bounds that mean something, of the Box's shape.

    An infinite bound is none; neither is a number at the end of float32 (or of float16, if that is
    the Box's dtype), which stands for infinity in many envs. Of integer Boxes Gymnasium itself
    remembers whether a bound was infinite.
    """
    bounded: np.ndarray = space.bounded_below & space.bounded_above
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        end = float(np.finfo(np.float16).max) if dtype == np.float16 else NO_BOUND
        bounded = np.logical_and(bounded, (space.low > -end) & (space.high < end))
    return bounded


def _box_leaf(key: str, path: Path, space: spaces.Box) -> ObsLeaf:
    shape = tuple(space.shape)
    layout = find_image_layout(shape) if len(shape) != 2 or space.dtype == UINT8 else None
    if space.dtype == UINT8 and layout is not None:
        return ObsLeaf(
            path, shape, ArraySpec(layout.shape, "uint8"), _Image(key, layout), layout.frames
        )
    remark = ""
    size = " x ".join(map(str, shape))
    count = int(np.prod(shape))
    if space.dtype == UINT8 and len(shape) > 2:
        remark = (
            f"observation {key!r} is uint8 of shape {size}, in which no image is "
            f"recognised, so dense layers read {count} numbers; "
            "give images as height x width x channels, a stack of them with the stack first"
        )
    elif len(shape) > 2:
        what = (
            "an image of floats"
            if np.dtype(space.dtype).kind == "f"
            else f"an image of {space.dtype}"
        )
        remark = (
            f"observation {key!r} may be {what}, and dense layers read its {count} "
            "numbers; as uint8 in a Box(0, 255) it is "
            "encoded as an image"
        )
    return ObsLeaf(path, shape, ArraySpec(shape), _Numbers(key), remark=remark)


def _classes(what: str, key: str, count: Any) -> int:
    if not 1 <= int(count) <= MAX_CLASSES:
        raise ConfigurationError(
            f"{what} {key!r} is one of {int(count)} classes, and 1 to {MAX_CLASSES} "
            "are supported; give large numbers as a Box"
        )
    return int(count)


def _unsupported(what: str, key: str, space: Any) -> str:
    kind = f"{type(space).__module__}.{type(space).__qualname__}"
    if isinstance(space, spaces.Space):
        text = " ".join(str(space).split())
        text = kind if " object at 0x" in text else f"{text} ({kind})"
        return (
            f"{what} {key!r} of the space {text} is not supported; use {ALLOWED}, or leave it out "
            "(gymnasium.wrappers.FilterObservation)"
        )
    return (
        f"{what} {key!r} has a space of class {kind}, which is none of Gymnasium's "
        "(the old gym's are not); make it with "
        "'from gymnasium import spaces', or wrap an env of the old gym in "
        "shimmy.GymV26CompatibilityV0"
    )


def _whole_bytes(key: str, image: np.ndarray) -> np.ndarray:
    """An image of another dtype as uint8; floats may mean [0, 1], so they are refused whatever they
    hold.
    """
    if image.dtype.kind not in "iu":
        raise EnvFailureError(
            f"image {key!r} is {image.dtype} and its space says uint8; return "
            "np.uint8 from 0 to 255"
        )
    low = int(image.min())
    high = int(image.max())
    if low < 0 or high > 255:
        raise EnvFailureError(
            f"image {key!r} holds numbers from {low} to {high} and its space says "
            "uint8; return np.uint8 from 0 to 255"
        )
    return image.astype(UINT8)


def _ignoring_overflow() -> contextvars.Context | None:
    """A context in which numpy casts what overflows to infinity without a warning. None before
    NumPy 2, whose error state belongs to the thread and not to the context.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return None
    context = contextvars.Context()
    context.run(np.seterr, over="ignore")
    return context


IGNORING_OVERFLOW = _ignoring_overflow()


def _as_float32(value: np.ndarray) -> np.ndarray:
    """Real numbers as float32; what overflows is infinite, and infinite numbers are refused later.

    This runs for every row: a context of its own costs a tenth of entering ``np.errstate``. A
    context can be entered once at a time, hence the copy, which copies nothing but a reference.
    """
    if IGNORING_OVERFLOW is not None:
        return IGNORING_OVERFLOW.copy().run(value.astype, FLOAT32)
    with np.errstate(over="ignore"):
        return value.astype(FLOAT32)


class _Image:
    """uint8 images in any layout -> [Y, X, channels]; numbers that are no uint8 are refused instead
    of cut.
    """

    def __init__(self, key: str, layout: ImageLayout) -> None:
        self._key = key
        self._layout = layout
        self._is_same = layout.native_shape == layout.shape and layout.axes == (0, 1, 2)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        if value.dtype != UINT8:
            value = _whole_bytes(self._key, value)
        return value if self._is_same else self._layout(value)


class _Numbers:
    """Numbers of any real dtype -> float32."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, value: np.ndarray) -> np.ndarray:
        if value.dtype is FLOAT32:
            return value
        if value.dtype.kind not in "biuf":
            raise EnvFailureError(
                f"observation {self._key!r} is of dtype {value.dtype}; return real numbers"
            )
        return _as_float32(value)


class _Flags(_Numbers):
    """0 and 1 -> float32; a MultiBinary space promises nothing else."""

    def __call__(self, value: np.ndarray) -> np.ndarray:
        flags = super().__call__(value)
        if not np.isin(flags, (0, 1)).all():
            raise EnvFailureError(
                f"observation {self._key!r} is {value.tolist()}, and its MultiBinary space "
                "promises 0 and 1; return those, or declare a Box"
            )
        return flags


class _OneHot:
    """Classes -> one-hot vectors, concatenated over the components."""

    def __init__(
        self, key: str, space: Any, nvec: np.ndarray, start: np.ndarray, *, rank: int
    ) -> None:
        self._key = key
        self._dtype = space.dtype
        self._nvec = nvec
        self._start = start
        self._rank = rank
        self._offset = np.concatenate([[0], np.cumsum(nvec)[:-1]]) if nvec.size else nvec

    def __call__(self, value: np.ndarray) -> np.ndarray:
        if value.dtype.kind not in "biu":
            raise EnvFailureError(
                f"observation {self._key!r} is {value.dtype} and its space says {self._dtype}; "
                f"return {self._dtype}, or declare a Box of float32"
            )
        lead = value.shape[: value.ndim - self._rank]
        index = value.reshape(*lead, self._nvec.size) - self._start
        if np.any((index < 0) | (index >= self._nvec)):
            raise EnvFailureError(
                f"observation {self._key!r} is {value.tolist()}, which lies outside "
                "its discrete space"
            )
        result = np.zeros((*lead, int(self._nvec.sum())), np.float32)
        np.put_along_axis(result, (index + self._offset).astype(np.int64), 1.0, axis=-1)
        return result


class Choice:
    """Classes counted from 0 -> the env's own numbers and dtype.

    Attributes:
        start: What class 0 is in the env, of the action's shape or one number for all.
        dtype: Of the env's numbers.
    """

    def __init__(self, start: np.ndarray, dtype: Any) -> None:
        self.start = start
        self.dtype = np.dtype(dtype)

    def __call__(self, value: np.ndarray) -> Any:
        """``[..., *shape]`` classes -> as many of the env's numbers."""
        native: np.ndarray = (value + self.start).astype(self.dtype)
        return native if native.ndim else native[()]

    def inverse(self, native: np.ndarray) -> np.ndarray:
        """The env's own numbers -> classes counted from 0."""
        flat: np.ndarray = native - self.start
        return flat


class Rescale:
    """[-1, 1] -> the bounds of a Box, reached exactly at -1 and 1; components without two bounds
    are not scaled.

    Attributes:
        dtype, native_low, native_high: Of the Box.
        bounded: Which components have two bounds.
        scale, shift, low, high: float64; an action of [-1, 1] is ``action * scale + shift``, inside
            ``low`` and ``high``.

    Raises:
        ConfigurationError: If a bound is NaN, a low one lies above its high one, or no action of
            [-1, 1] lies inside an open end.
    """

    def __init__(self, key: str, space: spaces.Box) -> None:
        self.dtype = np.dtype(space.dtype)
        self.native_low = space.low
        self.native_high = space.high
        bounded = has_bounds(space)
        low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
        _check_bounds(key, low, high, bounded)
        with np.errstate(over="ignore"):
            self.scale = np.where(
                bounded, np.where(bounded, high, 1) / 2 - np.where(bounded, low, 0) / 2, 1.0
            )
            self.shift = np.where(
                bounded, np.where(bounded, high, 0) / 2 + np.where(bounded, low, 0) / 2, 0.0
            )
        self.low = low
        self.high = high
        self.bounded = bounded
        self._is_unit = bool(np.all((low == -1) & (high == 1))) and self.dtype.kind == "f"
        self._is_exact = True
        self._is_exact = self._reaches(LOWEST, space.low) and self._reaches(HIGHEST, space.high)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """``[..., *shape]`` in [-1, 1], else cut -> inside the bounds."""
        unit = np.minimum(np.maximum(value, LOWEST), HIGHEST)
        native: np.ndarray
        if self._is_unit:
            return np.asarray(unit, self.dtype)
        inside = np.minimum(np.maximum(unit * self.scale + self.shift, self.low), self.high)
        native = (
            inside.astype(self.dtype, copy=False)
            if self.dtype.kind == "f"
            else self._whole(np.rint(inside))
        )
        if not self._is_exact:
            native = np.where(self.bounded & (unit == HIGHEST), self.native_high, native)
            native = np.where(self.bounded & (unit == LOWEST), self.native_low, native)
        return np.asarray(native)

    def inverse(self, native: np.ndarray) -> np.ndarray:
        """The bounds of a Box -> [-1, 1], not clipped; a component whose two bounds are
        equal is 0.
        """
        scale = np.where(self.scale > 0, self.scale, 1.0)
        unit: np.ndarray = np.where(self.scale > 0, (native - self.shift) / scale, 0.0)
        return unit

    def _reaches(self, end: np.ndarray, bound: np.ndarray) -> bool:
        """False if a rounding keeps the formula from a bound: of far bounds beside near ones, or of
        integers that are no floats.
        """
        reached = self(np.broadcast_to(end, bound.shape))
        return bool(np.all((reached == bound) | ~self.bounded))

    def _whole(self, rounded: np.ndarray) -> np.ndarray:
        """Whole floats as the Box's integers; those at the far ends of 64 bits are no integers of
        the dtype and become bounds.
        """
        above = rounded >= self.high
        below = rounded <= self.low
        safe = np.where(above | below, 0.0, rounded).astype(self.dtype)
        return np.where(above, self.native_high, np.where(below, self.native_low, safe))


def _check_bounds(key: str, low: np.ndarray, high: np.ndarray, bounded: np.ndarray) -> None:
    wrong = np.argwhere(~(low <= high))
    if wrong.size:
        where = tuple(wrong[0])
        raise ConfigurationError(
            f"action {key!r} has the bounds [{low[where]:g}, {high[where]:g}]; low "
            "must be a number that is at most high"
        )
    stuck = np.argwhere(~bounded & (low < high) & ((low >= 1) | (high <= -1)))
    if stuck.size:
        where = tuple(stuck[0])
        only = low[where] if low[where] >= 1 else high[where]
        raise ConfigurationError(
            f"action {key!r} has the bounds [{low[where]:g}, {high[where]:g}], and an "
            "agent acts in [-1, 1], which is scaled "
            f"to finite bounds only, so every action becomes {only:g}; give the Box "
            "two finite bounds"
        )
