"""How work is cut into programs: from shapes alone, so that nothing is measured while it runs."""

from __future__ import annotations

__all__ = [
    "ELEMENTS",
    "categoricals_per_program",
    "cdiv",
    "next_power_of_2",
    "rows_per_program",
    "warps",
]

ELEMENTS = 1024
"""Of one program where rows do not matter."""


def cdiv(size: int, each: int) -> int:
    """How many parts of ``each`` hold ``size``."""
    return -(-size // each)


def next_power_of_2(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def rows_per_program(rows: int, width: int) -> int:
    """Rows of ``width`` features that one program normalises; one where rows are few, for they are
    what runs side by side.
    """
    return min(max(1, 2048 // next_power_of_2(width)), next_power_of_2(cdiv(rows, 512)))


def categoricals_per_program(classes: int) -> int:
    """Distributions over ``classes`` that one program draws from."""
    return max(1, 256 // next_power_of_2(classes))


def warps(elements: int) -> int:
    """About eight elements per thread, in 1 to 16 warps."""
    return min(16, max(1, next_power_of_2(elements) // 256))
