"""The tree of errors that worldloom raises.

    WorldLoomError
    ├── ConfigurationError (ValueError)  a setting is wrong: field, value, what is allowed, the fix
    ├── ShapeMismatchError (ValueError)  an array has not the shape or dtype that its spec promises
    ├── StateError                           an object was used in a state that does not allow it
    ├── ModelNotFoundError (ValueError)  no model, agent or preset of that name; offers the nearest
    ├── CheckpointError                      a file is missing, corrupt, foreign or does not fit
    ├── TrainingError (RuntimeError)  training cannot go on (ten non-finite updates in a row)
    ├── BufferError (ValueError)  the replay cannot serve the request (no episode is long)
    ├── MissingDependencyError (ImportError) an optional package is not installed; says which line
    installs it
    ├── HubError (ConnectionError)  a model hub cannot be reached, or failed
    └── EnvFailureError (RuntimeError)  an environment raised, hung or died

Every leaf also inherits the builtin that fits, and every one survives pickling: ``args`` are the
constructor's arguments, so an error that a Ray actor raises reaches the driver as itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from worldloom.core.extras import install_line

__all__ = [
    "BufferError",
    "CheckpointError",
    "ConfigurationError",
    "EnvFailureError",
    "HubError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "ShapeMismatchError",
    "StateError",
    "TrainingError",
    "WorldLoomError",
    "nearest",
]


class WorldLoomError(Exception):
    """Root of every error that worldloom raises on purpose."""


class ConfigurationError(WorldLoomError, ValueError):
    """A setting is wrong.

    Args:
        message: One sentence: field, value, what is allowed, how to fix it.
        config_name: Name of the config the field belongs to; put in front of the message in
            brackets.
    """

    def __init__(self, message: str, config_name: str | None = None) -> None:
        super().__init__(message, config_name)
        self.message = message
        self.config_name = config_name

    def __str__(self) -> str:
        return f"[{self.config_name}] {self.message}" if self.config_name else self.message


class ShapeMismatchError(WorldLoomError, ValueError):
    """An array does not match its spec."""

    def __init__(self, message: str, expected: object = None, got: object = None) -> None:
        super().__init__(message, expected, got)
        self.message = message
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        if self.expected is None and self.got is None:
            return self.message
        return f"{self.message}: expected {self.expected}, got {self.got}"


class StateError(WorldLoomError):
    """An object was used in a state that does not allow it."""


class ModelNotFoundError(WorldLoomError, ValueError):
    """No model, agent or preset has this name."""

    def __init__(self, model_name: str, available: Iterable[str] = ()) -> None:
        available = tuple(available)
        super().__init__(model_name, available)
        self.model_name = model_name
        self.available = available

    def __str__(self) -> str:
        text = f"no model named {self.model_name!r}{nearest(self.model_name, self.available)}"
        return f"{text} (available: {', '.join(self.available)})" if self.available else text


class CheckpointError(WorldLoomError):
    """A saved file is missing, corrupt, foreign or does not fit the object that loads it."""


class TrainingError(WorldLoomError, RuntimeError):
    """Training cannot go on."""


class BufferError(WorldLoomError, ValueError):
    """The replay buffer cannot serve the request."""


class MissingDependencyError(WorldLoomError, ImportError):
    """An optional package is not installed; the message holds the line that installs it."""

    def __init__(self, purpose: str, package: str, extra: str = "") -> None:
        super().__init__(purpose, package, extra)
        self.purpose = purpose
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        line = install_line(self.extra) if self.extra else f"pip install {self.package}"
        return f"{self.purpose} needs {self.package}: {line}"


class HubError(WorldLoomError, ConnectionError):
    """A model hub cannot be reached, or failed."""


class EnvFailureError(WorldLoomError, RuntimeError):
    """An environment raised, hung or died."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the closest choice, or an empty string when none
    is close.
    """
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
