"""What can go wrong between a program and a gateway."""

from __future__ import annotations

__all__ = ["ClientError", "RefusedError", "UnavailableError", "WireError"]


class ClientError(Exception):
    """Anything that this package raises."""


class WireError(ClientError):
    """A value does not have the form that the wire or the policy asks for."""


class RefusedError(ClientError):
    """The gateway said no, and asking again in the same way will not help.

    Attributes:
        code: As ``grpc.StatusCode`` names it, for example ``INVALID_ARGUMENT``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnavailableError(ClientError):
    """The gateway could not be reached within the time that was given."""
