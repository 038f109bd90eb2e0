"""The public API as text, a line per name, for the file that freezes it: ``python -m
tests.compat.public_api > tests/compat/public_api.txt``.

Public are the names in ``__all__`` of :data:`MODULES`, the flags of a run, the commands, the
metrics, and the messages of the gateway. Of a class: its bases, how it is made, its public methods
and properties, its fields with their defaults, its members with their values.
"""

import dataclasses
import enum
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldloom.commands import RUN_COMMANDS
from worldloom_client.wire import PACKAGE, POOL
from worldloom_dist.metrics.names import METRICS
from worldloom_dist.run.cli import flag_names
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import PRESETS

MODULES = (
    *("worldloom", "worldloom.testing", "worldloom.factory", "worldloom.training"),
    *("worldloom.evaluation", "worldloom.core", "worldloom.core.exceptions"),
    *("worldloom.core.protocol", "worldloom.core.specs", "worldloom.core.sequence"),
    *("worldloom_client", "worldloom_dist.submit", "worldloom_dist.evaluate"),
    "worldloom_dist.serve",
)
OURS = ("worldloom.", "worldloom_dist.", "worldloom_client.")


def describe() -> str:
    """The whole text; its lines are sorted."""
    lines = {line for module in MODULES for line in of_module(module)}
    lines |= {f"command worldloom {name}" for name in RUN_COMMANDS}
    lines |= set(of_flags())
    lines |= {f"metric {name}: {info.kind}" for name, info in METRICS.items()}
    lines |= {f"preset {name}" for name in PRESETS}
    lines |= set(of_messages())
    return "".join(f"{line}\n" for line in sorted(lines))


def of_module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for public in module.__all__:
        yield from of_name(f"{name}.{public}", getattr(module, public))


def of_name(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from of_class(name, value)
    elif inspect.ismodule(value):
        yield f"{name}: module"
    elif callable(value):
        yield f"{name}{signature_of(value)}"
    elif name.endswith("__version__"):
        yield f"{name}: str"
    elif isinstance(value, str | int | float | tuple | frozenset):
        yield f"{name} = {default_of(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def of_class(name: str, kind: type) -> Iterator[str]:
    bases = [
        base.__name__
        for base in kind.__mro__[1:]
        if base is not object and base.__module__.startswith((*OURS, "builtins", "torch.nn"))
    ]
    yield f"{name}: class({', '.join(bases)})"
    if issubclass(kind, enum.Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in kind)
        return
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            has_factory = field.default_factory is not dataclasses.MISSING
            default = "<made>" if has_factory else default_of(field.default)
            end = "" if default == "<none>" else f" = {default}"
            yield f"{name}.{field.name}: field{end}"
    elif not getattr(kind, "_is_protocol", False):
        yield f"{name}.__init__{signature_of(kind)}"
    for own in dir(kind):
        home = next((base for base in kind.__mro__ if own in vars(base)), object)
        if own.startswith("_") or not home.__module__.startswith(OURS):
            continue
        member = inspect.getattr_static(kind, own)
        if isinstance(member, property):
            yield f"{name}.{own}: property"
        elif isinstance(member, staticmethod | classmethod) or inspect.isfunction(member):
            yield f"{name}.{own}{signature_of(getattr(kind, own))}"


def signature_of(function: Any) -> str:
    """Names, kinds and defaults; annotations are left to the type checker."""
    try:
        found = inspect.signature(function)
    except (ValueError, TypeError):
        return "(...)"
    parts = []
    has_star = False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            parts.append("*")
            has_star = True
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        has_star = has_star or mark == "*"
        text = mark + parameter.name
        if parameter.default is not parameter.empty:
            text += f"={default_of(parameter.default)}"
        parts.append(text)
    return f"({', '.join(parts)})"


def default_of(value: Any) -> str:
    """A default as text that is the same on every machine."""
    if value is dataclasses.MISSING:
        return "<none>"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Path):
        return f"Path({str(value)!r})"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(default_of, value))})"
    if isinstance(value, frozenset | set):
        return f"{{{', '.join(sorted(map(default_of, value)))}}}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"<{type(value).__name__}>"
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


def of_flags() -> Iterator[str]:
    """Every flag with the default that it has without a preset."""
    config = RunConfig()
    for flag in flag_names():
        path = "env.env" if flag == "--env" else flag.removeprefix("--").replace("-", "_")
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        yield f"flag {flag} = {default_of(value)}"


def of_messages() -> Iterator[str]:
    file = POOL.FindFileContainingSymbol(f"{PACKAGE}.PolicyService")
    for service in file.services_by_name.values():
        for method in service.methods:
            yield f"rpc {service.name}.{method.name}({method.input_type.name})"
    for message in file.message_types_by_name.values():
        for field in message.fields:
            yield f"message {message.name}.{field.name} = {field.number}"
    for kind in file.enum_types_by_name.values():
        for value in kind.values:
            yield f"enum {kind.name}.{value.name} = {value.number}"


if __name__ == "__main__":
    sys.stdout.write(describe())
