"""Rows that a program made itself, on their way to a run's replay.

    with feed("127.0.0.1:50051", spool="spool") as replay:
        replay.add(obs, action)                                  # an episode begins
        replay.add(obs, action, reward)                          # what the action before led to
        replay.add(last_obs, reward=reward, terminated=True)

Rows are packed into chunks, chunks go to disk, and a thread pushes them: at once where the run
takes them, later where it is away or its train ratio wants no more. Each is stored once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from worldloom_client.dialogue import Action, Row, checked_array
from worldloom_client.errors import ClientError, RefusedError, UnavailableError, WireError
from worldloom_client.settings import Settings, addresses_of
from worldloom_client.spool import Spool, SpoolFolder
from worldloom_client.wire import (
    MAX_MESSAGE_BYTES,
    SOURCES,
    Spec,
    encode_tensor,
    message,
    method,
    specs_of,
)

__all__ = ["Feed", "feed"]

PushRequest = message("PushRequest")
FLAG_BYTES = 8
CALL_S = 10.0


def feed(address: str, *, spool: Any, **settings: Any) -> Feed:
    """Open a feed.

    Args:
        address: ``HOST:PORT`` of a gateway; several with commas are tried in turn.
        spool: Folder for chunks that are not stored yet.
        **settings: Fields of :class:`worldloom_client.settings.Settings`.

    Raises:
        ClientError: If a setting cannot be, or the folder cannot be used.
        RefusedError: If the gateway says no.
        UnavailableError: If none answers within ``timeout_s``.
    """
    return Feed(address, Settings(**{"on_hold": "spool", **settings, "spool": spool}))


class _Open:
    """The open chunk of one env."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seq = 0
        self.next_number = 0


class Feed:
    """Used by one thread; see the module.

    Args:
        address, settings: As for :func:`feed`.

    Attributes:
        rows_skipped: Rows for which the spool had no room: left out, and no window joins the rows
            around them.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        from worldloom_client.channel import credentials
        from worldloom_client.pusher import Pusher

        assert settings.spool is not None
        addresses = addresses_of(address)
        self._settings = settings
        self.rows_skipped = 0
        secured_by, metadata = credentials(settings)
        self._spool = Spool(settings.spool, settings.spool_bytes)
        try:
            described, secret = _open(addresses, secured_by, metadata, settings)
            self._folder: SpoolFolder = self._spool.begin(secret)
        except BaseException:
            self._spool.close()
            raise
        self.obs_specs: list[Spec] = specs_of(described.obs)
        self.action_specs: list[Spec] = specs_of(described.action)
        self._max_rows = self._most_rows(described.limits)
        self._envs = [_Open() for _ in range(settings.num_envs)]
        self._is_ended = [True] * settings.num_envs
        self._is_closed = False
        self._pusher = Pusher(addresses, secured_by, metadata, self._spool, self._folder)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not stored yet, rows of open chunks apart."""
        return self._spool.waiting_bytes

    @property
    def is_held(self) -> bool:
        """True while the train ratio wants no more rows."""
        return self._pusher.is_held

    def add(
        self,
        obs: Any,
        action: Any = None,
        reward: float = 0.0,
        *,
        terminated: bool = False,
        truncated: bool = False,
        source: str = "script",
        env: int = 0,
    ) -> None:
        """One row.

        Args:
            obs: An array, or a mapping where the space is a dictionary.
            action: What was done there; of no meaning in the last row of an episode, where it may
                be left out. Continuous actions are in [-1, 1], discrete ones count from 0.
            reward: Of the way here; of no meaning in the first row of an episode.
            terminated, truncated: This is the last row of its episode.
            source: Who chose the action: ``script``, ``human``, ``safety`` or ``policy``.
            env: Whose row.

        Raises:
            WireError: If something is not what the run stores.
            RefusedError: If the run refused earlier rows; they are kept beside the spool.
        """
        if self._is_closed:
            raise ClientError("the feed is closed; open another one")
        self.check()
        if not 0 <= env < len(self._envs):
            raise WireError(f"env: got {env}, expected 0 to {len(self._envs) - 1}")
        if source not in SOURCES:
            raise WireError(f"source: got {source!r}, expected one of {', '.join(SOURCES)}")
        if not np.isfinite(reward):
            raise WireError(f"reward: got {reward}, expected a finite number")
        is_first = self._is_ended[env]
        is_last = bool(terminated or truncated) and not is_first
        if action is None and not is_last:
            raise WireError("action: got none; it may be left out in the last row of an episode")
        row = Row(
            self._envs[env].next_number,
            _arrays(obs, self.obs_specs, "obs"),
            0.0 if is_first else float(reward),
            is_first,
            bool(terminated) and not is_first,
            bool(truncated) and not is_first,
            ran=None if action is None else _arrays(action, self.action_specs, "action"),
            source=source,
        )
        self._is_ended[env] = is_last
        self.take(env, row)

    def take(self, env: int, row: Row) -> None:
        """One complete row, of a session or of :meth:`add`."""
        chunk = self._envs[env]
        follows = row.number == chunk.next_number
        if chunk.rows and (row.is_first or not follows or not _are_alike(chunk.rows[-1], row)):
            self._close_chunk(env)
        if not follows and not row.is_first:
            chunk.seq += 1  # rows are missing here
        chunk.next_number = row.number + 1
        chunk.rows.append(row)
        if row.is_last or len(chunk.rows) == self._max_rows:
            self._close_chunk(env)

    def flush(self) -> None:
        """Spool the rows of open chunks."""
        for env in range(len(self._envs)):
            self._close_chunk(env)

    def check(self) -> None:
        """Raises:
        RefusedError: If the run refused rows since the last call.
        """
        error = self._pusher.error
        if error is not None:
            self._pusher.error = None
            raise error

    def close(self, within_s: float | None = None) -> int:
        """Push what there is.

        Args:
            within_s: How long that may take; by default ``timeout_s``. The rest stays in the
                spool, for the next process.

        Returns:
            Bytes that stay there.

        Raises:
            RefusedError: As :meth:`check`.
        """
        if self._is_closed:
            return 0
        self._is_closed = True
        self.flush()
        left = self._spool.wait_empty(self._settings.timeout_s if within_s is None else within_s)
        self._pusher.stop()
        self._spool.close()
        self.check()
        return left

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(0.0 if kind is not None else None)

    def _close_chunk(self, env: int) -> None:
        chunk = self._envs[env]
        if not chunk.rows:
            return
        data = self._request(env, chunk).SerializeToString()
        if not self._spool.put(self._folder, env, chunk.seq, data):
            self.rows_skipped += len(chunk.rows)
        chunk.seq += 1
        chunk.rows = []

    def _request(self, env: int, chunk: _Open) -> Any:
        rows = chunk.rows
        columns: dict[str, np.ndarray] = {
            "reward": np.array([row.reward for row in rows], np.float32),
            "is_first": np.array([row.is_first for row in rows]),
            "terminated": np.array([row.terminated for row in rows]),
            "truncated": np.array([row.truncated for row in rows]),
        }
        for spec in self.obs_specs:
            columns[_column("obs", spec)] = np.stack([row.obs[spec.name] for row in rows])
        for spec in self.action_specs:
            nothing = np.zeros(spec.shape, spec.dtype)
            columns[_column("action", spec)] = np.stack(
                [nothing if row.ran is None else row.ran[spec.name] for row in rows]
            )
        request = PushRequest(env=env, seq=chunk.seq, source=SOURCES[rows[0].source])
        request.version.incarnation, request.version.update = rows[0].version
        for name, array in columns.items():
            tensor = encode_tensor(array, compress=self._settings.compress)
            request.column[name].CopyFrom(tensor)
        return request

    def _most_rows(self, limits: Any) -> int:
        specs = (*self.obs_specs, *self.action_specs)
        row_bytes = sum(int(spec.nbytes) for spec in specs) + FLAG_BYTES
        room = min(int(limits.max_message_bytes), MAX_MESSAGE_BYTES) * 9 // 10
        return max(1, min(int(limits.max_rows_per_chunk), room // row_bytes))


def _open(
    addresses: list[str], secured_by: Any, metadata: tuple[Any, ...], settings: Settings
) -> tuple[Any, bytes]:
    """What the run is, and a secret to push with."""
    import os

    import grpc

    from worldloom_client.channel import backoff_s, open_channel
    from worldloom_client.state import KEY_BYTES, SERVICE, check_retried

    open_message = message("OpenRequest")
    key = os.urandom(KEY_BYTES)
    deadline = time.monotonic() + settings.timeout_s
    tries = 0
    why = "no answer"
    while True:
        address = addresses[tries % len(addresses)]
        try:
            with open_channel(address, secured_by) as channel:

                def call(name: str, request: Any, channel: Any = channel) -> Any:
                    """One call."""
                    unary = channel.unary_unary(
                        method(SERVICE, name),
                        request_serializer=type(request).SerializeToString,
                        response_deserializer=message(f"{name}Response").FromString,
                    )
                    return unary(request, timeout=CALL_S, metadata=metadata)

                described = call("Describe", message("DescribeRequest")())
                if "push" not in described.features:
                    raise RefusedError(
                        "FAILED_PRECONDITION", f"the server at {address} takes no rows"
                    )
                request = open_message(
                    client=settings.client,
                    num_envs=settings.num_envs,
                    fingerprint=settings.fingerprint or described.fingerprint,
                    push=True,
                    idempotency_key=key,
                )
                return described, call("Open", request).secret
        except grpc.RpcError as error:
            check_retried(error)
            why = error.details() or why
        if time.monotonic() >= deadline:
            where = ", ".join(addresses)
            raise UnavailableError(
                f"no gateway answered at {where} within {settings.timeout_s:g} s ({why})"
            )
        time.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        tries += 1


def _are_alike(one: Row, other: Row) -> bool:
    """Chosen by the same weights and the same source: they may share a chunk."""
    return one.version == other.version and one.source == other.source


def _column(group: str, spec: Spec) -> str:
    return group if spec.name == group else f"{group}/{spec.name}"


def _arrays(value: Any, specs: list[Spec], group: str) -> Action:
    from worldloom_client.state import single

    given: Mapping[str, Any] = single(value, group, specs)
    if set(given) != {spec.name for spec in specs}:
        raise WireError(
            f"{group}: got keys {sorted(given)}, expected {sorted(spec.name for spec in specs)}"
        )
    return {
        spec.name: checked_array(given[spec.name], spec, (), f"{group} {spec.name!r}")
        for spec in specs
    }
