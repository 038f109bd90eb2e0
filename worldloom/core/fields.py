"""What a field of a settings class may hold: plain Python values of its declared type, inside its
bounds. No torch.

A setting arrives as what a program has at hand: a numpy integer, a path, a ``torch.device``, a
member of an enum. Here it becomes the plain value that it means, which JSON can hold, or it is
refused with a sentence, when the settings are made and not when a checkpoint is written hours
later.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldloom.core.exceptions import ConfigurationError

__all__ = ["FRACTION", "NOT_NEGATIVE", "POSITIVE", "Bounds", "checked", "normalize"]

INTEGER_LIMIT = 1 << 63
"""Integers at or above this, in size, fit no counter."""
TEXT_TYPES = {("torch", "device"), ("torch", "dtype")}
"""Types of torch that a setting names by a word; told apart without importing torch."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which numbers are allowed.

    Args:
        least, most: The ends of the range.
        above, below: Ends that are not themselves allowed.

    Example:
        >>> str(Bounds(1)), str(Bounds(above=0, most=1)), 0 in Bounds(above=0)
        ('>= 1', 'in (0, 1]', False)
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        fits_low = (self.least is None or value >= self.least) and (
            self.above is None or value > self.above
        )
        return (
            fits_low
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        if low is not None and high is not None:
            return (
                f"in {'[' if self.above is None else '('}{low}, "
                f"{high}{']' if self.below is None else ')'}"
            )
        if low is not None:
            return f"{'>=' if self.above is None else '>'} {low}"
        return f"{'<=' if self.below is None else '<'} {high}" if high is not None else ""


POSITIVE = Bounds(above=0)
NOT_NEGATIVE = Bounds(0)
FRACTION = Bounds(0, 1)


class _UnfitError(Exception):
    """A value is not of the type; holds what was expected, and how to write the value instead."""

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected, hint)
        self.expected = expected
        self.hint = hint


def normalize(
    config: Any, bounds: Mapping[str, Bounds] | None = None, *, prefix: str = ""
) -> list[str]:
    """Put plain values into the fields of a dataclass, frozen or not, and say what cannot be one.

    Args:
        config: An instance, from its ``__post_init__``. Fields of a type that is not known here
            keep what they hold.
        bounds: Ranges of numeric fields; None passes where a field may be None.
        prefix: In front of the fields' names in sentences, e.g. ``"replay."``.

    Returns:
        One sentence per field that cannot hold its value, with what is allowed; empty when all is
        well.
    """
    kinds = _kinds(type(config))  # type: ignore[arg-type]
    problems = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        try:
            fitting = _fitting(value, kinds.get(field.name, Any), (bounds or {}).get(field.name))
        except _UnfitError as error:
            if value is None and not error.hint:
                error = _UnfitError(error.expected, "leave it out for the default")
            problems.append(_sentence(prefix + field.name, error, value))
        else:
            if fitting is not value:
                object.__setattr__(config, field.name, fitting)
    return problems


def checked(name: str, value: Any, kind: Any, bounds: Bounds | None = None) -> Any:
    """A value as the plain one of a type that it means; for arguments that are no fields of a
    dataclass.

    Args:
        name: How the sentence calls it.
        value: What came.
        kind: ``int``, ``float | None``, ``tuple[int, ...]`` and so on.
        bounds: Of a number.

    Raises:
        ConfigurationError: If it cannot be one.

    Example:
        >>> checked("horizon", 3, int, Bounds(1))
        3
    """
    try:
        return _fitting(value, kind, bounds)
    except _UnfitError as error:
        raise ConfigurationError(_sentence(name, error, value)) from None


def _sentence(name: str, error: _UnfitError, value: Any) -> str:
    hint = f"; {error.hint}" if error.hint else ""
    return f"{name} must be {error.expected}, got {_SHORT.repr(value)}{hint}"


@functools.cache
def _kinds(owner: type) -> dict[str, Any]:
    """The declared types of a class's fields; those of a class whose annotations cannot be read
    count as Any.
    """
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):
        return {}


def _fitting(value: Any, kind: Any, bounds: Bounds | None) -> Any:
    """As :func:`_fit`, for a value of any depth."""
    try:
        return _fit(value, kind, bounds)
    except RecursionError:
        raise _UnfitError("nested less deeply") from None


def _fit(value: Any, kind: Any, bounds: Bounds | None = None) -> Any:
    """The plain value of a type.

    Raises:
        _UnfitError: If there is none.
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _of_union(value, arguments, bounds)
    if origin is typing.Literal:
        return _of_literal(value, arguments)
    if kind in SCALARS:
        return SCALARS[kind](_scalar(value), bounds)
    if origin is tuple or kind is tuple:
        return _of_tuple(value, arguments, bounds)
    if origin is list or kind is list:
        return [_fit(item, (arguments or (Any,))[0], bounds) for item in _items(value, "a list")]
    if isinstance(origin or kind, type) and issubclass(origin or kind, Mapping):
        return _of_mapping(value, arguments or (str, Any), bounds)
    if kind is Any:
        return _of_anything(value)
    return value


def _scalar(value: Any) -> Any:
    """A number of numpy or torch, or an array of one without axes, as Python's own; anything else
    as it is.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    return value.value if isinstance(value, enum.Enum) else value


def _of_int(value: Any, bounds: Bounds | None) -> int:
    expected = f"an integer {bounds or ''}".rstrip()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _UnfitError(expected, _integer_hint(value))
    plain = int(value)
    if abs(plain) >= INTEGER_LIMIT:
        raise _UnfitError(f"{expected} and below 2**63")
    if bounds is not None and plain not in bounds:
        raise _UnfitError(expected)
    return plain


def _integer_hint(value: Any) -> str:
    if isinstance(value, bool):
        return "True and False are no counts"
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return f"write {value.strip()} without quotes"
    if isinstance(value, tuple | list) and len(value) == 1:
        return f"pass the number itself, {_scalar(value[0])!r}"
    return ""


def _of_float(value: Any, bounds: Bounds | None) -> float:
    expected = f"a number {bounds or ''}".rstrip()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _UnfitError(
            expected, "True and False are no numbers" if isinstance(value, bool) else ""
        )
    try:
        plain = int(value) if isinstance(value, numbers.Integral) else float(value)
        is_finite = math.isfinite(plain)
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise _UnfitError(f"a finite number {bounds or ''}".rstrip())
    if bounds is not None and plain not in bounds:
        raise _UnfitError(expected)
    return plain


def _of_bool(value: Any, bounds: Bounds | None) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError("True or False")
    return value


def _of_text(value: Any, bounds: Bounds | None) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if (type(value).__module__, type(value).__name__) in TEXT_TYPES:
        return str(value).removeprefix("torch.")
    raise _UnfitError("a text")


def _of_none(value: Any, bounds: Bounds | None) -> None:
    if value is not None:
        raise _UnfitError("None")


SCALARS: dict[Any, Callable[[Any, Bounds | None], Any]] = {
    int: _of_int,
    float: _of_float,
    bool: _of_bool,
    str: _of_text,
    type(None): _of_none,
}


def _of_union(value: Any, kinds: Sequence[Any], bounds: Bounds | None) -> Any:
    errors = []
    for kind in sorted(kinds, key=lambda k: k is not type(None)):
        try:
            return _fit(value, kind, bounds)
        except _UnfitError as error:
            errors.append(error)
    hint = next((error.hint for error in errors if error.hint), "")
    raise _UnfitError(" or ".join(error.expected for error in errors), hint)


def _of_literal(value: Any, allowed: Sequence[Any]) -> Any:
    plain = _scalar(value)
    for choice in allowed:
        if (
            isinstance(plain, type(choice))
            and plain == choice
            and isinstance(plain, bool) == isinstance(choice, bool)
        ):
            return choice
    raise _UnfitError("one of " + ", ".join(map(str, allowed)))


def _of_tuple(value: Any, kinds: Sequence[Any], bounds: Bounds | None) -> tuple[Any, ...]:
    items = _items(value, "a tuple")
    if not kinds:
        kinds = (Any, ...)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(items)
    if len(items) != len(kinds):
        raise _UnfitError(f"a tuple of {len(kinds)} entries")
    try:
        return tuple(_fit(item, kind, bounds) for item, kind in zip(items, kinds, strict=True))
    except _UnfitError as error:
        raise _UnfitError(f"a tuple whose entries are each {error.expected}", error.hint) from None


def _items(value: Any, expected: str) -> Sequence[Any]:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise _UnfitError(expected)
    return value


def _of_mapping(value: Any, kinds: Sequence[Any], bounds: Bounds | None) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _UnfitError("a mapping from names to values, e.g. a dict")
    result = {}
    for key, item in value.items():
        try:
            result[_fit(key, kinds[0])] = _fit(item, kinds[1], bounds)
        except _UnfitError as error:
            raise _UnfitError(
                f"a mapping whose entry {key!r} is {error.expected}", error.hint
            ) from None
    return result


def _of_anything(value: Any) -> Any:
    """Whatever JSON can hold; tuples become lists there, so they do here."""
    value = _scalar(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _of_float(value, None)
    if isinstance(value, Mapping):
        return _of_mapping(value, (str, Any), None)
    try:
        return _of_text(value, None)
    except _UnfitError:
        pass
    try:
        return [_of_anything(item) for item in _items(value, "")]
    except _UnfitError as error:
        expected = (
            error.expected or "a number, a text, True, False, None, or a list or dict of them"
        )
        raise _UnfitError(expected) from None
