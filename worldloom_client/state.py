"""What a session knows between two connections: its secret, its dialogue, and when replay wants
rows again. No I/O, so the blocking and the asyncio session share it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldloom_client.dialogue import Dialogue
from worldloom_client.errors import ClientError, RefusedError, WireError
from worldloom_client.rows import Action, as_array
from worldloom_client.settings import Settings
from worldloom_client.wire import Spec, message, specs_of

__all__ = [
    "ASK_HOLD",
    "CONNECT_S",
    "KEY_BYTES",
    "SERVICE",
    "SessionState",
    "check_retried",
    "fallback_actions",
    "one_row",
    "plain",
    "single",
    "stacked",
]

SERVICE = "PolicyService"
CONNECT_S = 10.0
RETRIED = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "NOT_FOUND",  # the server forgot the session: resume it
    "UNKNOWN",
    "INTERNAL",
)
"""Names of ``grpc.StatusCode``, which this module does not import: that takes time."""
KEY_BYTES = 16
ASK_HOLD = message("ActRequest")()
"""A question of no env, which asks only whether replay wants rows."""


class SessionState:
    """One session's state.

    Args:
        settings: How it was opened.

    Attributes:
        description: What the server said of itself last.
        version: ``(incarnation, update)`` of the weights that acted last.
        warning: What the server said when it opened the session.
        secret: Of the session; empty before the first Open.
        streams: ``(slot, incarnation)`` of the session at every server that it had.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.description: Any = None
        self.version = (0, 0)
        self.warning = ""
        self.secret = b""
        self.is_storing = False
        self.streams: list[tuple[int, int]] = []
        self._key = os.urandom(KEY_BYTES)
        self._dialogue: Dialogue | None = None
        self._hold_until = 0.0

    @property
    def dialogue(self) -> Dialogue:
        """What was asked and answered; there is one after the first Open."""
        assert self._dialogue is not None
        return self._dialogue

    @property
    def hold_s(self) -> float:
        """Seconds for which replay wants no more rows; 0 for none."""
        return max(0.0, self._hold_until - time.monotonic()) if self.is_storing else 0.0

    def open_request(self, described: Any) -> Any:
        """The ``OpenRequest`` for a server that described itself so."""
        settings = self.settings
        store = settings.store
        explore = settings.explore
        return message("OpenRequest")(
            client=settings.client,
            num_envs=settings.num_envs,
            fingerprint=settings.fingerprint or described.fingerprint,
            explore="explore" in described.features if explore is None else explore,
            store="store" in described.features if store is None else store,
            resume=self.secret,
            control_hz=settings.control_hz,
            idempotency_key=self._key,
        )

    def opened(self, request: Any, described: Any, response: Any, address: str) -> list[Any]:
        """Take an ``OpenResponse``; returns the questions to ask again.

        Raises:
            ClientError: If the server at ``address`` has another policy than the one before.
        """
        self.description = described
        self.warning = response.warning
        self.secret = response.secret
        self.is_storing = request.store
        stream = (response.slot, response.incarnation)
        if stream not in self.streams:
            self.streams.append(stream)
        self._key = os.urandom(KEY_BYTES)
        found = (specs_of(described.obs), specs_of(described.action))
        if self._dialogue is None:
            self._dialogue = Dialogue(
                *found, self.settings.num_envs, compress=self.settings.compress
            )
        elif found != (self._dialogue.obs, self._dialogue.action):
            raise ClientError(f"the gateway at {address} has another policy; open a new session")
        return self._dialogue.after_break(response.position)

    def take(self, request: Any, answer: Any) -> None:
        """Take an ``ActStreamResponse``.

        Raises:
            RefusedError: If the question was refused.
        """
        if answer.HasField("refusal"):
            self.dialogue.take_back(request)
            raise RefusedError(answer.refusal.code, answer.refusal.message)
        response = answer.response
        hold_s = response.hold.seconds + response.hold.nanos / 1e9
        self._hold_until = time.monotonic() + hold_s if hold_s else 0.0
        if len(request.env):
            self.version = (response.version.incarnation, response.version.update)
            self.dialogue.answer(request, response)


def check_retried(error: Any) -> None:
    """Look at a ``grpc.RpcError``.

    Raises:
        RefusedError: If asking again will not help.
    """
    code = error.code().name if hasattr(error, "code") and error.code() is not None else None
    if code is not None and code not in RETRIED:
        raise RefusedError(code, error.details() or code) from error


def single(value: Any, group: str, specs: Sequence[Spec]) -> Mapping[str, Any]:
    """What one env gives, by key: a bare array belongs to the only key of its space.

    Raises:
        ClientError: If the space has several keys.
    """
    if isinstance(value, Mapping):
        return value
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise ClientError(f"{group}: the policy has the keys {names}; give a mapping with them")
    return {specs[0].name: value}


def one_row(obs: Any, specs: Sequence[Spec]) -> dict[str, np.ndarray]:
    """One env's observation as a question takes it: per key ``[1, *shape]``.

    Raises:
        ClientError: If the space has several keys and no mapping came.
        WireError: If an array has another shape than the env's.
    """
    shapes = {spec.name: tuple(spec.shape) for spec in specs}
    rows = {}
    for key, value in single(obs, "obs", specs).items():
        array = as_array(value, f"obs {key!r}")
        expected = shapes.get(key, array.shape)
        if array.shape != expected:
            raise WireError(f"obs {key!r}: got shape {array.shape}, expected {expected}")
        rows[key] = array[None]
    return rows


def plain(action: Action) -> Any:
    """The first row of an action: a bare array where its space is no dictionary."""
    row: dict[str, np.ndarray] = {key: value[0] for key, value in action.items()}
    return row["action"] if set(row) == {"action"} else row


def fallback_actions(
    settings: Settings, obs: Mapping[str, np.ndarray], envs: Sequence[int], specs: Sequence[Spec]
) -> list[Action]:
    """What the program does by itself, per env.

    Args:
        settings: With a ``fallback``.
        obs: Per key ``[n, *shape]``.
        envs: Which.
        specs: Of an action.
    """
    assert settings.fallback is not None
    chosen = []
    for place, env in enumerate(envs):
        row = {key: value[place] for key, value in obs.items()}
        own = row["obs"] if set(row) == {"obs"} else row
        action = single(settings.fallback(own, env), "action", specs)
        chosen.append({key: np.asarray(value) for key, value in action.items()})
    return chosen


def stacked(actions: Sequence[Action]) -> Action:
    """Per key ``[n, *shape]``."""
    return {key: np.stack([action[key] for action in actions]) for key in actions[0]}
