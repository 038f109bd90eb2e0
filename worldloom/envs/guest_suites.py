"""Suites of envs that installed packages bring: ``--env walk:7`` is the env ``7`` of the suite
``walk`` that an entry point of the group ``worldloom.env_suites`` names.

The entry point is a module with a function ``make``, or the function itself as ``module:name``. It
takes the resolved ``EnvConfig`` and returns a Gymnasium env or a ``RawEnv``. Settings that the
suite runs with unless told otherwise are its module's ``DEFAULTS``; an example is in
``docs/extending/environment.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.guests import ENV_SUITES, guests

__all__ = ["suite_defaults", "suite_maker"]

MAKE = "make"
DEFAULTS = "DEFAULTS"


def suite_maker(suite: str) -> Callable[..., Any]:
    """The function that makes the envs of a guest's suite.

    Raises:
        ConfigurationError: If it cannot be imported, or there is no such function.
    """
    _, _, name = guests(ENV_SUITES)[suite].value.partition(":")
    found = _named(suite, name or MAKE)
    if not callable(found):
        guest = guests(ENV_SUITES)[suite]
        raise ConfigurationError(
            f"env suite {suite!r} of {guest.package}: {guest.value} has no function "
            f"{name or MAKE}(config) that returns an env"
        )
    made: Callable[..., Any] = found
    return made


def suite_defaults(suite: str) -> Mapping[str, Any]:
    """Settings of ``EnvConfig`` that a guest's suite runs with unless told otherwise.

    Raises:
        ConfigurationError: If its module cannot be imported, or they are no mapping.
    """
    found = _named(suite, DEFAULTS)
    found = {} if found is None else found
    if not isinstance(found, Mapping):
        raise ConfigurationError(
            f"env suite {suite!r}: its {DEFAULTS} must map settings of EnvConfig to values, got "
            f"{type(found).__name__}"
        )
    return found


def _named(suite: str, name: str) -> Any:
    """What a suite's module has by that name, a path with dots; None where it has nothing."""
    guest = guests(ENV_SUITES)[suite]
    home = guest.value.partition(":")[0]
    try:
        found: Any = importlib.import_module(home)
        for part in name.split("."):  # a module may make its names as they are asked for
            found = getattr(found, part, None)
        return found
    except (Exception, SystemExit) as error:  # the edge: code of others may raise anything
        raise ConfigurationError(
            f"env suite {suite!r} of {guest.package} cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
