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
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np

from worldloom_client.errors import ClientError, RefusedError, WireError
from worldloom_client.rows import LARGEST, Row, checked
from worldloom_client.settings import Settings, addresses_of
from worldloom_client.spool import Spool, SpoolFolder
from worldloom_client.wire import (
    MAX_MESSAGE_BYTES,
    SOURCES,
    Spec,
    check_action,
    encode_tensor,
    has_zstd,
    message,
    method,
    specs_of,
)

__all__ = ["Feed", "feed"]

PushRequest = message("PushRequest")
FLAG_BYTES = 8
SCALARS = ("reward", "is_first", "terminated", "truncated")
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
    """The open chunk of one env.

    Args:
        buffers: Per column ``[rows, ...]``.
    """

    def __init__(self, buffers: dict[str, np.ndarray]) -> None:
        self.buffers = buffers
        self.rows = 0
        self.seq = 0
        self.next_number = 0
        self.source = ""
        self.version = (0, 0)


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
        self._compress: Literal["", "zlib", "zstd"] = "zlib" if settings.compress else ""
        if "zstd" in described.features and has_zstd():
            self._compress = "zstd"  # pictures shrink in less time than it takes to send them
        self._obs = [(_column("obs", spec), spec) for spec in self.obs_specs]
        self._action = [(_column("action", spec), spec) for spec in self.action_specs]
        self._envs = [_Open(self._buffers()) for _ in range(settings.num_envs)]
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
        if not abs(float(reward)) <= LARGEST:
            raise WireError(f"reward: got {reward}, expected a number of float32")
        is_first = self._is_ended[env]
        is_last = bool(terminated or truncated) and not is_first
        if action is None and not is_last:
            raise WireError("action: got none; it may be left out in the last row of an episode")
        arrays = _checked(obs, self._obs, "obs")
        ran = {} if action is None else _checked(action, self._action, "action")
        for name, spec in self._action if ran else ():
            check_action(ran[name], spec, f"action {spec.name!r}")
        self._is_ended[env] = is_last
        self._put(
            env,
            self._envs[env].next_number,
            arrays | ran,
            0.0 if is_first else float(reward),
            (is_first, bool(terminated) and not is_first, bool(truncated) and not is_first),
            source,
            (0, 0),
        )

    def take(self, env: int, row: Row) -> None:
        """One complete row of a session."""
        arrays = {name: row.obs[spec.name] for name, spec in self._obs}
        if row.ran is not None:
            arrays |= {name: row.ran[spec.name] for name, spec in self._action}
        flags = (row.is_first, row.terminated, row.truncated)
        self._put(env, row.number, arrays, row.reward, flags, row.source, row.version)

    def _put(
        self,
        env: int,
        number: int,
        arrays: Mapping[str, np.ndarray],
        reward: float,
        flags: tuple[bool, bool, bool],
        source: str,
        version: tuple[int, int],
    ) -> None:
        """Copy a row into the open chunk, after closing it where the row does not belong to it."""
        chunk = self._envs[env]
        is_first, terminated, truncated = flags
        follows = number == chunk.next_number
        is_alike = (chunk.source, chunk.version) == (source, version)
        if chunk.rows and (is_first or not follows or not is_alike):
            self._close_chunk(env)
        if not follows and not is_first:
            chunk.seq += 1  # rows are missing here
        chunk.next_number = number + 1
        chunk.source = source
        chunk.version = version
        place = chunk.rows
        for name, array in arrays.items():
            chunk.buffers[name][place] = array
        if len(arrays) < len(self._obs) + len(self._action):  # the last row, where nothing is done
            for name, _ in self._action:
                chunk.buffers[name][place] = 0
        for name, value in zip(SCALARS, (reward, *flags), strict=True):
            chunk.buffers[name][place] = value
        chunk.rows = place + 1
        if terminated or truncated or chunk.rows == self._max_rows:
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
            self.rows_skipped += chunk.rows
        chunk.seq += 1
        chunk.rows = 0

    def _request(self, env: int, chunk: _Open) -> Any:
        request = PushRequest(env=env, seq=chunk.seq, source=SOURCES[chunk.source])
        request.version.incarnation, request.version.update = chunk.version
        for name, buffer in chunk.buffers.items():
            tensor = encode_tensor(buffer[: chunk.rows], compress=self._compress)
            request.column[name].CopyFrom(tensor)
        return request

    def _buffers(self) -> dict[str, np.ndarray]:
        size = self._max_rows
        named = {
            name: np.zeros((size, *spec.shape), spec.dtype)
            for name, spec in (*self._obs, *self._action)
        }
        flags = {name: np.zeros(size, bool) for name in SCALARS[1:]}
        return {**named, "reward": np.zeros(size, np.float32), **flags}

    def _most_rows(self, limits: Any) -> int:
        row_bytes = sum(spec.nbytes for spec in (*self.obs_specs, *self.action_specs)) + FLAG_BYTES
        room = min(limits.max_message_bytes, MAX_MESSAGE_BYTES) * 9 // 10
        rows: int = max(1, min(limits.max_rows_per_chunk, room // row_bytes))
        return rows


def _open(
    addresses: list[str], secured_by: Any, metadata: tuple[Any, ...], settings: Settings
) -> tuple[Any, bytes]:
    """What the run is, and a secret to push with."""
    import os

    import grpc

    from worldloom_client.channel import backoff_s, open_channel, unavailable
    from worldloom_client.state import KEY_BYTES, SERVICE, check_retried

    open_message = message("OpenRequest")
    key = os.urandom(KEY_BYTES)
    deadline = time.monotonic() + settings.timeout_s
    tries = 0
    last = None
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
            last = error
        if time.monotonic() >= deadline:
            raise unavailable(addresses, settings.timeout_s, last, settings)
        time.sleep(min(backoff_s(tries), max(0.0, deadline - time.monotonic())))
        tries += 1


def _column(group: str, spec: Spec) -> str:
    return group if spec.name == group else f"{group}/{spec.name}"


def _checked(value: Any, specs: Sequence[tuple[str, Spec]], group: str) -> dict[str, np.ndarray]:
    """Arrays by column, if they are what the run stores; nothing is copied.

    Raises:
        WireError: Says what is not.
    """
    if isinstance(value, Mapping) or len(specs) != 1:
        from worldloom_client.state import single

        given = single(value, group, [spec for _, spec in specs])
        names = {spec.name for _, spec in specs}
        if set(given) != names:
            raise WireError(f"{group}: got keys {sorted(given)}, expected {sorted(names)}")
        return {
            name: checked(given[spec.name], spec, f"{group} {spec.name!r}") for name, spec in specs
        }
    name, spec = specs[0]
    return {name: checked(value, spec, f"{group} {spec.name!r}")}
