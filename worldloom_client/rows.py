"""One row of an env at the client, and arrays that may become part of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloom_client.errors import WireError
from worldloom_client.wire import Spec, all_finite

__all__ = ["LARGEST", "Action", "Row", "as_array", "checked", "checked_array"]

Action = dict[str, np.ndarray]
LARGEST = float(np.finfo(np.float32).max)
"""Rows hold float32: no reward is larger."""


@dataclass(slots=True)
class Row:
    """What one env arrived at, what was done there, and what became of it.

    Attributes:
        number: Of the row among all of its env.
        obs, reward, is_first, terminated, truncated: As in replay.
        step: Of the question; -1 where no server was asked.
        is_skipped: It stays out of the rows that the server makes of the questions.
        ran: The action; None until there is one.
        source: Who chose it.
        version: Incarnation and update of the weights, where the policy did.
        is_known: The server that is asked now knows what ran: its own answer, or what it was told.
    """

    number: int
    obs: Action
    reward: float
    is_first: bool
    terminated: bool
    truncated: bool
    step: int = -1
    is_skipped: bool = False
    ran: Action | None = None
    source: str = "policy"
    version: tuple[int, int] = (0, 0)
    is_known: bool = False

    @property
    def is_last(self) -> bool:
        """True for the last row of its episode."""
        return self.terminated or self.truncated


def as_array(value: Any, what: str) -> np.ndarray:
    """Anything that numpy takes for an array.

    Raises:
        WireError: If it does not.
    """
    if type(value) is np.ndarray:
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise WireError(f"{what}: is no array ({error})") from error


def checked_array(value: Any, spec: Spec, lead: tuple[int, ...], what: str) -> np.ndarray:
    """As :func:`checked`, and a copy in the dtype of the spec."""
    return np.array(checked(value, spec, what, lead), spec.dtype)


def checked(value: Any, spec: Spec, what: str, lead: tuple[int, ...] = ()) -> np.ndarray:
    """The array, if its shape is that of the spec and its numbers can be told in the dtype of it.

    Raises:
        WireError: If the shape is another one, or numbers would be changed by the dtype.
    """
    given = as_array(value, what)
    shape = (*lead, *spec.shape) if lead else spec.shape
    if given.shape != shape:
        raise WireError(f"{what}: got shape {given.shape}, expected {shape}")
    is_cast = given.dtype != spec.dtype
    if is_cast and not np.can_cast(given.dtype, spec.dtype, "same_kind"):
        raise WireError(f"{what}: got {given.dtype}, expected {spec.dtype}")
    if given.dtype.kind == "f" and not all_finite(given):
        raise WireError(f"{what}: holds numbers that are not finite")
    if is_cast and given.size:
        _check_range(given, np.dtype(spec.dtype), what)
    return given


def _check_range(given: np.ndarray, dtype: np.dtype[Any], what: str) -> None:
    """Raises:
    WireError: If a number is too large for the dtype, which would wrap around or be infinite.
    """
    if np.can_cast(given.dtype, dtype, "safe"):
        return
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    for extreme in (given.min(), given.max()):
        if not limits.min <= extreme <= limits.max:
            raise WireError(
                f"{what}: got {extreme}, expected numbers of {dtype}, which are from "
                f"{limits.min} to {limits.max}"
            )
