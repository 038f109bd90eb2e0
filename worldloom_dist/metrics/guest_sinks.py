"""Sinks that are none of ours, by the name that an installed package gives them (entry point of the
group ``worldloom.sinks``) or as ``package.module:name``.

    worldloom train --sink my_package.sinks:CsvSink+influx

What is named is called with the run folder, the run's id and its settings, and returns a ``Sink``.
It is opened and fed in the thread of all sinks, so it may be slow or fail.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.core.guests import SINKS, guests

__all__ = ["OURS", "MakeSink", "find_sink", "sink_names"]

MakeSink = Callable[[Path, str, Mapping[str, Any]], Any]
"""Run folder, id of the run, its settings -> a ``Sink``."""
OURS = ("mlflow", "otel", "tensorboard", "trackio", "wandb")
"""Sinks with a switch of their own."""
METHODS = ("write", "show", "close")
JOIN = "+"


def sink_names(text: str | None) -> list[str]:
    """The sinks of ``--sink a+b``."""
    return [name.strip() for name in (text or "").split(JOIN) if name.strip()]


def find_sink(name: str) -> MakeSink:
    """What makes the sink of that name.

    Raises:
        ConfigurationError: If there is none, it cannot be imported, or is no sink.
    """
    value = guests(SINKS)[name].value if name in guests(SINKS) else name
    module, colon, attribute = value.partition(":")
    if name in OURS:
        raise ConfigurationError(f"sink {name!r} has a switch of its own; write --{name}")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), attribute]):
        known = ", ".join(guests(SINKS)) or "none"
        raise ConfigurationError(
            f"sink {name!r}: no installed package brings it{nearest(name, [*guests(SINKS), *OURS])}"
            f"; name one of them ({known}) or write package.module:name"
        )
    try:
        found: Any = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # the edge: code of others may raise anything
        raise ConfigurationError(
            f"sink {name!r} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(found):
        names = dir(importlib.import_module(module))
        raise ConfigurationError(
            f"sink {name!r}: {module} has no {attribute!r} that makes a sink"
            f"{nearest(attribute, names)}"
        )
    missing = [method for method in METHODS if not hasattr(found, method)]
    if isinstance(found, type) and missing:
        raise ConfigurationError(
            f"sink {name!r}: {found.__name__} has no {', '.join(missing)}, which a sink needs; see "
            "docs/extending/sink.md"
        )
    made: MakeSink = found
    return made
