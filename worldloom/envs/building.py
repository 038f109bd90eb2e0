"""Foreign code while it is imported or builds an env: whatever it raises becomes one
sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, WorldLoomError
from worldloom.envs.config import EnvConfig

__all__ = ["FOREIGN_ERRORS", "EnvBuildError", "error_text", "foreign_code"]

FOREIGN_ERRORS = (Exception, SystemExit, asyncio.CancelledError)
"""What code that is not ours may end with: a ``sys.exit`` in it must end nothing but its env. A
Ctrl-C is not its own.
"""

NOT_THEIRS = ("<", str(Path(__file__).parents[1]), str(Path(importlib.__file__).parent))
"""How the names of files begin that are no place to look at: frozen modules, ours, the import
system's.
"""


class EnvBuildError(ConfigurationError):
    """Code that is not ours raised while it built an env: wrong input before a run, and in its
    course a fault that may pass.
    """


@contextlib.contextmanager
def foreign_code(config: EnvConfig, what: str) -> Iterator[None]:
    """Run code that is not ours; a ``sys.exit`` in it ends nothing.

    Args:
        config: Names the env.
        what: What is done to it, for the message: ``built`` or ``imported``.

    Raises:
        EnvBuildError: If it raises anything but an error of ours; names the cause and where it
            happened.
    """
    try:
        yield
    except WorldLoomError:
        raise
    except FOREIGN_ERRORS as error:
        raise EnvBuildError(
            f"env {config.env!r} cannot be {what}: {_cause(error)}; for the whole traceback: "
            f"worldloom check-env {config.env} --debug"
        ) from error


def error_text(error: BaseException) -> str:
    """An error in one line: ours as it is, others with the name of their kind and where in foreign
    code it was raised.
    """
    if isinstance(error, WorldLoomError):
        return " ".join(str(error).split())
    return _with_place(f"{type(error).__name__}: {first_line(error)}", error)


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        text = f"it called sys.exit({error.code!r})"
    else:
        text = (
            f"{type(error).__name__}: "
            f"{error.msg if isinstance(error, SyntaxError) else first_line(error)}"
        )
    return _with_place(text, error)


def _with_place(text: str, error: BaseException) -> str:
    place = _place(error)
    return f"{text} ({place})" if place else text


def _place(error: BaseException) -> str:
    """``file:line`` of the innermost frame that is neither ours nor the import system's; empty when
    there is none.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SyntaxError):
        return "" if error.filename is None else f"{error.filename}:{error.lineno}"
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(NOT_THEIRS)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
