"""The settings of one agent, as ``--agent NAME --help`` lists them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from worldloom.algorithms.registry import make_agent_config

__all__ = ["agent_help"]

WIDTH = 96


def agent_help(name: str) -> str:
    """Flags, defaults and meaning of an agent's fields.

    Raises:
        ModelNotFoundError: If there is no such agent.
    """
    config: Any = make_agent_config(name)
    texts = _help_of(type(config))
    lines = [f"settings of {config.name}, as --agent.FIELD VALUE:", ""]
    for field in dataclasses.fields(config):
        if field.name == "name":
            continue
        flag = f"--agent.{field.name.replace('_', '-')}"
        text = f"{texts.get(field.name, '')} (default: {getattr(config, field.name)})"
        indent = " " * 32
        first = f"  {flag:<29} " if len(flag) < 30 else f"  {flag}\n{indent}"
        body = textwrap.wrap(text.strip(), WIDTH - len(indent))
        lines.append(first + f"\n{indent}".join(body))
    return "\n".join(lines) + "\n"


def _help_of(kind: type) -> dict[str, str]:
    """Field -> the text below it, those of the classes it builds on included."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # made in an interpreter
            continue
        body = ast.parse(source).body[0]
        if not isinstance(body, ast.ClassDef):
            continue
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(str(after.value.value).split())
    return texts
