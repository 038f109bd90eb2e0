"""Every numeric setting of a run is finite, of its type, and inside its bounds, or is refused in a
sentence that names it.
"""

import dataclasses
import math
import types
import typing

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.data.selector_spec import parse_selector
from worldloom.envs.config import EnvLimits
from worldloom_dist.run.cli import parse
from worldloom_dist.run.config import BOUNDS, BOUNDS_OF, RunConfig

SECTIONS = {"": RunConfig, **{name: typing.get_type_hints(RunConfig)[name] for name in BOUNDS_OF}}
UNFIT = [math.nan, math.inf, -math.inf, True, 10**400, -(10**400), -1, "7"]


def numeric_fields():
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if {int, float} & set(options):
                yield section, field.name


def with_field(section, name, value) -> RunConfig:
    config = RunConfig()
    if not section:
        return dataclasses.replace(config, **{name: value})
    part = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: part})


@pytest.mark.parametrize(("section", "name"), [*numeric_fields()])
@pytest.mark.parametrize("value", UNFIT, ids=repr)
def test_number_that_cannot_work_is_refused_by_the_name_of_its_field(section, name, value):
    full = f"{section}.{name}" if section else name
    problems = with_field(section, name, value).problems()
    assert len(problems) == 1
    assert problems[0].startswith(f"{full} must be ")
    assert ", got " in problems[0]


def test_every_numeric_field_has_bounds_and_no_others_have():
    bounded = {("", name) for name in BOUNDS} | {
        (section, name) for section in BOUNDS_OF for name in BOUNDS_OF[section]
    }
    assert bounded == set(numeric_fields())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "flag", ["--actors.pull-interval-s", "--train-ratio", "--replay.ram-gb", "--placement.wait-s"]
)
def test_command_line_refuses_what_is_not_finite(flag, value):
    with pytest.raises(ConfigurationError, match=r"must be (None or )?a finite number .*got"):
        parse([flag, value])


@pytest.mark.parametrize(
    "part",
    [
        "prioritised:nan",
        "prioritised:inf",
        "prioritised:1000",
        "recency:nan",
        "recency:-1",
        "recency:1e3",
    ],
)
@pytest.mark.parametrize("share", ["", "0.5*"])
def test_selector_parameters_have_bounds(part, share):
    text = f"{share}{part}" + ("+0.5*uniform" if share else "")
    with pytest.raises(
        ConfigurationError, match=r"needs a parameter in \[0, (4|100)\] and a share in \[0, 1\]"
    ):
        parse_selector(text)


def test_selector_shares_are_numbers():
    with pytest.raises(ConfigurationError, match=r"a share in \[0, 1\]"):
        parse_selector("nan*uniform+0.5*recency")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EnvLimits)])
def test_limits_of_envs_are_no_nan(field):
    with pytest.raises(ConfigurationError, match=f"env limit {field} must be > 0, got nan"):
        EnvLimits(**{field: math.nan})
