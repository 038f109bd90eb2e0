"""Errors in one line, for the middle of a sentence."""

from __future__ import annotations

__all__ = ["first_line", "last_line", "telling_line"]

TRACEBACK = "Traceback (most recent call last)"


def first_line(error: object) -> str:
    """The first line of an error's text without its full stop; the name of its kind where it has no
    text.

    Example:
        >>> first_line(OSError("no space left.  "))
        'no space left'
        >>> first_line(TimeoutError())
        'TimeoutError'
    """
    return _lines(error)[0].strip().rstrip(".")


def last_line(error: object) -> str:
    """The last line of an error's text, where what happened comes after a report of where; the name
    of its kind where it has no text.
    """
    return _lines(error)[-1].strip()


def telling_line(error: object) -> str:
    """The line of a text that says what happened: of a traceback the last, else the first."""
    line = last_line(error) if TRACEBACK in _lines(error)[0] else first_line(error)
    return line.rstrip(".")


def _lines(error: object) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
