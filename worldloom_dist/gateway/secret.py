"""The secret of a session: what it names is readable, and signed with the key of the run, so that
any gateway of the run knows it for one of ours after the one that gave it out is gone.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
from dataclasses import dataclass, field

from worldloom_dist.gateway.refusal import RefusalError

__all__ = ["MAX_SECRET_BYTES", "Claim"]

SIGNATURE_BYTES = 32
MAX_SECRET_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Claim:
    """What a secret says.

    Attributes:
        slot, incarnation: Of the session's streams.
        num_envs: Its envs.
        store, explore: What it was opened for.
        begin: Per env the step of its first row, where that is not 0.
        push: It was opened to push chunks, and for nothing else.
    """

    slot: int
    incarnation: int
    num_envs: int
    store: bool
    explore: bool
    begin: list[int] = field(default_factory=list)
    push: bool = False

    def begin_of(self, env: int) -> int:
        """Step of the first row of ``env``."""
        return self.begin[env] if self.begin else 0

    def sign(self, key: bytes) -> bytes:
        """The secret."""
        body = json.dumps(dataclasses.astuple(self), separators=(",", ":")).encode()
        return hmac.digest(key, body, "sha256") + body

    @classmethod
    def of(cls, secret: bytes, key: bytes) -> Claim:
        """Inverse of :meth:`sign`.

        Raises:
            RefusalError: If it was not signed with this key.
        """
        signature = secret[:SIGNATURE_BYTES]
        body = secret[SIGNATURE_BYTES:]
        if len(secret) > MAX_SECRET_BYTES or not hmac.compare_digest(
            signature, hmac.digest(key, body, "sha256")
        ):
            raise RefusalError(
                "UNAUTHENTICATED",
                "session: this secret was not given out by this run; open a session first",
            )
        return cls(*json.loads(body))
