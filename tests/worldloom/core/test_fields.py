"""A field holds the plain value that it was given the meaning of, or says what it may hold."""

from __future__ import annotations

import decimal
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, Bounds, checked, normalize


class Word(str):
    __slots__ = ()


class Kind(enum.StrEnum):
    ONE = "one"


class Number(enum.IntEnum):
    TWO = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    is_on: bool = False
    name: str = "a"
    limit: float | None = None
    mode: Literal["auto", "on"] = "auto"
    shape: tuple[int, ...] = (1,)
    pair: tuple[int, str] = (1, "a")
    scales: Mapping[str, float] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


ACCEPTED = [
    ("count", np.int64(3), 3),
    ("count", np.array(3), 3),
    ("count", torch.tensor(3), 3),
    ("count", Number.TWO, 2),
    ("rate", np.float32(0.5), 0.5),
    ("rate", np.longdouble(0.5), 0.5),
    ("rate", 1, 1),
    ("is_on", np.bool_(True), True),
    ("name", Path("/a/b"), "/a/b"),
    ("name", torch.device("cpu"), "cpu"),
    ("name", torch.bfloat16, "bfloat16"),
    ("name", Word("x"), "x"),
    ("name", np.str_("x"), "x"),
    ("name", Kind.ONE, "one"),
    ("limit", None, None),
    ("limit", np.float64(2.0), 2.0),
    ("mode", Word("on"), "on"),
    ("shape", np.array([2, 3]), (2, 3)),
    ("shape", [np.int32(2)], (2,)),
    ("shape", torch.Size([2, 3]), (2, 3)),
    ("pair", [2, Word("b")], (2, "b")),
    ("scales", {Word("k"): np.float32(1.0)}, {"k": 1.0}),
    (
        "rest",
        {"a": (np.int8(1), Path("b")), "c": {"d": np.arange(2)}},
        {"a": [1, "b"], "c": {"d": [0, 1]}},
    ),
]


@pytest.mark.parametrize(("name", "given", "plain"), ACCEPTED)
def test_a_value_becomes_the_plain_one_it_means(name: str, given: Any, plain: Any) -> None:
    settings = Settings(**{name: given})
    assert normalize(settings) == []
    found = getattr(settings, name)
    assert found == plain
    assert type(found) is type(plain)
    again = json.loads(json.dumps(found))
    assert (tuple(again) if isinstance(plain, tuple) else again) == plain


REFUSED = [
    ("count", True, "count must be an integer, got True"),
    ("count", 2.0, "count must be an integer, got 2.0; write 2"),
    ("count", 0.1, "count must be an integer, got 0.1"),
    ("count", "2", "count must be an integer, got '2'; write 2 without quotes"),
    ("count", (2,), r"count must be an integer, got (2,); pass the number itself, 2"),
    ("count", None, "count must be an integer, got None"),
    ("count", 1 << 70, "count must be an integer and below 2**63"),
    ("rate", float("nan"), "rate must be a finite number, got nan"),
    ("rate", np.inf, "rate must be a finite number, got inf"),
    ("rate", 10**400, "rate must be a finite number, got 1000"),
    ("rate", True, "rate must be a number, got True"),
    ("rate", "x", "rate must be a number, got 'x'"),
    ("rate", 1j, "rate must be a number, got 1j"),
    ("rate", decimal.Decimal("0.1"), "rate must be a number, got Decimal('0.1')"),
    ("is_on", 1, "is_on must be True or False, got 1"),
    ("is_on", "no", "is_on must be True or False, got 'no'"),
    ("name", 3, "name must be a text, got 3"),
    ("name", b"x", "name must be a text, got b'x'"),
    ("limit", "x", "limit must be None or a number, got 'x'"),
    ("mode", "off", "mode must be one of auto, on, got 'off'"),
    ("shape", 3, "shape must be a tuple, got 3"),
    ("shape", "34", "shape must be a tuple, got '34'"),
    ("shape", (1, 2.5), "shape must be a tuple whose entries are each an integer, got (1, 2.5)"),
    ("pair", (1,), "pair must be a tuple of 2 entries, got (1,)"),
    (
        "scales",
        {"k": float("nan")},
        "scales must be a mapping whose entry 'k' is a finite number, got {'k': nan}",
    ),
    ("scales", [1], "scales must be a mapping from names to values, e.g. a dict, got [1]"),
    ("rest", {"a": {1, 2}}, "rest must be a mapping whose entry 'a' is a number, a text, True"),
    ("rest", {"a": [float("inf")]}, "rest must be a mapping whose entry 'a' is a finite number"),
    ("rest", {1: 2}, "rest must be a mapping whose entry 1 is a text"),
]


@pytest.mark.parametrize(("name", "given", "sentence"), REFUSED)
def test_a_value_of_another_type_is_refused_with_what_is_allowed(
    name: str, given: Any, sentence: str
) -> None:
    (problem,) = normalize(Settings(**{name: given}))
    assert problem.startswith(sentence)


def test_all_problems_are_said_with_their_bounds_and_none_passes_where_it_may() -> None:
    bounds = {
        "count": Bounds(1),
        "rate": Bounds(above=0, below=1),
        "limit": FRACTION,
        "shape": Bounds(1),
    }
    settings = Settings(count=0, rate=1.0, limit=-0.1, shape=(3, 0))
    assert normalize(settings, bounds, prefix="replay.") == [
        "replay.count must be an integer >= 1, got 0",
        "replay.rate must be a number in (0, 1), got 1.0",
        "replay.limit must be None or a number in [0, 1], got -0.1",
        "replay.shape must be a tuple whose entries are each an integer >= 1, got (3, 0)",
    ]
    assert normalize(Settings(count=1, rate=0.5, limit=None), bounds) == []


def test_an_argument_is_checked_like_a_field() -> None:
    assert checked("horizon", np.int64(3), int, Bounds(1)) == 3
    with pytest.raises(ConfigurationError, match=r"^horizon must be an integer <= 4, got 5$"):
        checked("horizon", 5, int, Bounds(most=4))
    with pytest.raises(ConfigurationError, match=r"got (?s:.{0,90})$"):
        checked("horizon", np.zeros(100_000), int)
