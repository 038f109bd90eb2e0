"""What a gateway says no to, and how it says it."""

from __future__ import annotations

__all__ = ["RefusalError"]


class RefusalError(Exception):
    """A call that cannot be answered.

    Attributes:
        code: As ``grpc.StatusCode`` names it, for example ``INVALID_ARGUMENT``.
        message: One sentence for the client: field, what came, what is allowed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message
