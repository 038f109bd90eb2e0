"""A writer that dies, as by kill -9, at a change of the file system that a test chooses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worldloom.core import files


class DeathError(BaseException):
    """Stands for kill -9: nothing that the writer would still do is done."""


@contextlib.contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[int]]:
    """Let the process die at the ``at``-th change of the file system; the clean-up of a process
    that lives is not done.
    """
    calls = [0]

    def deadly(change: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] > at:
                raise DeathError
            return change(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
            (Path, "rmdir"),
            (Path, "mkdir"),
            (Path, "write_text"),
        ):
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        patch.setattr(files.shutil, "rmtree", lambda *args, **kwargs: None)
        with contextlib.suppress(DeathError):
            yield calls
