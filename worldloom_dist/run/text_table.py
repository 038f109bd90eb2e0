"""A table as text, its columns aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["aligned"]


def aligned(lines: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """The lines of a table with every column as wide as its widest cell; nothing is cut.

    Args:
        lines: Cells, those of the head first.
        right: Names in the head of columns that are aligned to the right, as numbers are.

    Example:
        >>> aligned([("run", "steps"), ("a", "1"), ("b-2", "20")], right=("steps",))
        ['run  steps', 'a        1', 'b-2     20']
    """
    heads = lines[0]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    return [
        "  ".join(
            text.rjust(width) if head in right else text.ljust(width)
            for head, text, width in zip(heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
