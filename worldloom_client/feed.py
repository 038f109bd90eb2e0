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
from collections.abc import Sequence
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
    """The open chunk of one env. An episode begins in its first row, if in any, and ends in its
    last one.

    Args:
        buffers: ``[rows, ...]`` for each array of a row, in order.
    """

    def __init__(self, buffers: list[np.ndarray]) -> None:
        self.buffers = buffers
        self.rewards: list[float] = []
        self.is_first = False
        self.terminated = False
        self.truncated = False
        self.seq = 0
        self.next_number = 0
        self.source = ""
        self.version = (0, 0)

    def scalars(self) -> dict[str, np.ndarray]:
        """The columns that are no arrays of a space, ``[rows]`` each."""
        rows = len(self.rewards)
        flags = np.zeros((3, rows), bool)
        flags[0, 0] = self.is_first
        flags[1, -1] = self.terminated
        flags[2, -1] = self.truncated
        reward = np.array(self.rewards, np.float32)
        return dict(zip(SCALARS, (reward, *flags), strict=True))


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
        self._columns = [
            *(_column("obs", spec) for spec in self.obs_specs),
            *(_column("action", spec) for spec in self.action_specs),
        ]
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
        arrays: list[Any] = _checked(obs, self.obs_specs, "obs")
        if action is not None:
            ran = _checked(action, self.action_specs, "action")
            for spec, array in zip(self.action_specs, ran, strict=True):
                check_action(array, spec, "action")
            arrays += ran
        self._is_ended[env] = is_last
        self._put(
            env,
            self._envs[env].next_number,
            arrays,
            0.0 if is_first else float(reward),
            (is_first, bool(terminated) and not is_first, bool(truncated) and not is_first),
            source,
            (0, 0),
        )

    def take(self, env: int, row: Row) -> None:
        """One complete row of a session."""
        arrays: list[Any] = [row.obs[spec.name] for spec in self.obs_specs]
        if row.ran is not None:
            arrays += [row.ran[spec.name] for spec in self.action_specs]
        flags = (row.is_first, row.terminated, row.truncated)
        self._put(env, row.number, arrays, row.reward, flags, row.source, row.version)

    def _put(
        self,
        env: int,
        number: int,
        arrays: list[Any],
        reward: float,
        flags: tuple[bool, bool, bool],
        source: str,
        version: tuple[int, int],
    ) -> None:
        """Copy a row into the open chunk, after closing it where the row does not belong to it.

        Args:
            arrays: In the order of the columns; those of the action may be missing in the last row
                of an episode, where nothing is done.
        """
        chunk = self._envs[env]
        is_first, terminated, truncated = flags
        follows = number == chunk.next_number
        is_alike = (chunk.source, chunk.version) == (source, version)
        if chunk.rewards and (is_first or not follows or not is_alike):
            self._close_chunk(env)
        if not follows and not is_first:
            chunk.seq += 1  # rows are missing here
        chunk.next_number = number + 1
        chunk.source = source
        chunk.version = version
        place = len(chunk.rewards)
        missing = len(chunk.buffers) - len(arrays)
        for buffer, array in zip(chunk.buffers, arrays + [0] * missing, strict=True):
            buffer[place] = array
        chunk.rewards.append(reward)
        chunk.is_first |= is_first
        chunk.terminated = terminated
        chunk.truncated = truncated
        if terminated or truncated or place + 1 == self._max_rows:
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
        if not chunk.rewards:
            return
        data = self._request(env, chunk).SerializeToString()
        if not self._spool.put(self._folder, env, chunk.seq, data):
            self.rows_skipped += len(chunk.rewards)
        chunk.seq += 1
        chunk.rewards = []
        chunk.is_first = False

    def _request(self, env: int, chunk: _Open) -> Any:
        request = PushRequest(env=env, seq=chunk.seq, source=SOURCES[chunk.source])
        request.version.incarnation, request.version.update = chunk.version
        rows = len(chunk.rewards)
        arrays = {
            name: buffer[:rows] for name, buffer in zip(self._columns, chunk.buffers, strict=True)
        }
        for name, array in {**arrays, **chunk.scalars()}.items():
            request.column[name].CopyFrom(encode_tensor(array, compress=self._compress))
        return request

    def _buffers(self) -> list[np.ndarray]:
        specs = (*self.obs_specs, *self.action_specs)
        return [np.zeros((self._max_rows, *spec.shape), spec.dtype) for spec in specs]

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


def _checked(value: Any, specs: Sequence[Spec], group: str) -> list[np.ndarray]:
    """Arrays in the order of the specs, if they are what the run stores; nothing is copied.

    Raises:
        WireError: Says what is not.
    """
    if type(value) is np.ndarray and len(specs) == 1:  # most rows
        return [checked(value, specs[0], f"{group} {specs[0].name!r}")]
    from worldloom_client.state import single

    given = single(value, group, specs)
    names = {spec.name for spec in specs}
    if set(given) != names:
        raise WireError(f"{group}: got keys {sorted(given)}, expected {sorted(names)}")
    return [checked(given[spec.name], spec, f"{group} {spec.name!r}") for spec in specs]
