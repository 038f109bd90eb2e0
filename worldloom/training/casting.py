"""Numbers that a user hands over, as the dtype in which they are stored: kept or refused, never
cut.
"""

from __future__ import annotations

import numpy as np

from worldloom.core.exceptions import BufferError, ShapeMismatchError

__all__ = ["cast", "convert", "flags", "stored_dtype", "stored_obs_dtype"]


def stored_dtype(name: str, dtype: object) -> np.dtype:
    """The numpy dtype of a column.

    Raises:
        ShapeMismatchError: If it is not one of numbers.
    """
    try:
        found: np.dtype = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        raise ShapeMismatchError(
            name, "a dtype of numbers such as np.float32 or np.uint8", repr(dtype)
        ) from None
    if found.kind not in "biuf":
        raise ShapeMismatchError(
            name, "a dtype of numbers such as np.float32 or np.uint8", str(found)
        )
    return found


def stored_obs_dtype(dtype: np.dtype) -> np.dtype:
    """What observations are kept as: floats as float32, others as they are."""
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


def convert(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """Numbers in another dtype; floats may be rounded to the precision of another float.

    Returns:
        The numbers, and the place of the first one that the dtype does not hold: None when it holds
        all of them. Numbers that are not finite are held by floats only.
    """
    if values.dtype == dtype:
        return values, None
    with np.errstate(over="ignore", invalid="ignore"):
        result = values.astype(dtype)
        if values.dtype.kind == "f" and dtype.kind == "f":
            lost = ~np.isfinite(result) & np.isfinite(values)
        else:  # an integer is kept or it is not, in a float too
            lost = result.astype(values.dtype) != values
    return result, tuple(np.argwhere(lost)[0].tolist()) if lost.any() else None


def cast(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Entries [n, ...] in the dtype that stores them, as :func:`convert` gives them.

    Raises:
        ShapeMismatchError: If the dtype does not hold one of them; names the first.
    """
    result, place = convert(values, dtype)
    if place is not None:
        allowed = {
            "b": "0 and 1 (or True and False)",
            "f": f"numbers up to {np.finfo(dtype).max:.3g}" if dtype.kind == "f" else "",
        }
        what = (
            allowed.get(dtype.kind) or f"integers in {np.iinfo(dtype).min}..{np.iinfo(dtype).max}"
        )
        got = (
            f"{values[place]} in entry {place[0]}; create the buffer with a dtype "
            "that holds it, e.g. np.float32"
        )
        raise ShapeMismatchError(f"{name} for a buffer of {dtype.name}", what, got)
    return result


def flags(name: str, values: object, steps: int) -> np.ndarray:
    """[steps] booleans; None is False everywhere.

    Raises:
        ShapeMismatchError: If there are not as many.
        BufferError: If one is neither true nor false.
    """
    if values is None:
        return np.zeros(steps, bool)
    array = np.asarray(values)
    if array.size != steps:
        raise ShapeMismatchError(f"{name} of an episode", (steps,), array.shape)
    array = array.reshape(steps)
    if array.dtype == bool:
        return array
    is_flag = np.isin(array, (0, 1)) if array.dtype.kind in "iuf" else np.zeros(steps, bool)
    if not is_flag.all():
        entry = int(np.flatnonzero(~is_flag)[0])
        raise BufferError(
            f"{name}: entry {entry} is {array[entry]!r}, expected True, False, 0 or 1"
        )
    return array.astype(bool)
