"""Errors in one line, also those without a text."""

import pytest

from worldloom.core.error_text import first_line, last_line, telling_line

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: a bad seed.\n'


@pytest.mark.parametrize(
    ("error", "first", "last", "telling"),
    [
        (OSError("full.\nat x.py"), "full", "at x.py", "full"),
        ("  The actor died.\n\n  killed by -9  ", "The actor died", "killed by -9", None),
        (TRACEBACK, None, "ValueError: a bad seed.", "ValueError: a bad seed"),
        (ValueError(), "ValueError", "ValueError", "ValueError"),
        (ValueError("  \n "), "ValueError", "ValueError", "ValueError"),
    ],
)
def test_what_happened_is_said_in_one_line(error, first, last, telling):
    assert first is None or first_line(error) == first
    assert last_line(error) == last
    assert telling is None or telling_line(error) == telling
