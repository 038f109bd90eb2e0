"""What every check says of a breach."""

from __future__ import annotations

from typing import Any

from worldloom.core.exceptions import WorldLoomError

__all__ = ["ContractError", "expect"]


class ContractError(WorldLoomError, AssertionError):
    """A model or an agent breaks its contract; the message says which part."""


def expect(is_kept: bool, what: str, expected: Any, got: Any) -> None:
    """Refuse a breach in one sentence.

    Raises:
        ContractError: If the promise is not kept.
    """
    if not is_kept:
        raise ContractError(f"{what}: expected {expected}, got {got}")
