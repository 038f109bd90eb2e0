"""Chunks of rows that clients made themselves: checked, and handed to replay one after the other.

A call knows nothing of the calls before it. What makes a chunk stored once is its name: the streams
of the secret, the env, and its number, which shards remember for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ACTION, column_name
from worldloom.data.codec import EncodedColumn, make_chunk
from worldloom_client.errors import WireError
from worldloom_client.wire import ZSTD, check_action, decode_tensor, message
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.meter import GatewayMeter
from worldloom_dist.gateway.questions import check_source
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.gateway.secret import Claim
from worldloom_dist.gateway.stream import AGAIN_S, POLICY, Append
from worldloom_dist.ports import CHUNK_SOURCES, EpisodeOverError
from worldloom_dist.replay.records import LARGEST_VERSION, MOST_SEQ

__all__ = ["Pushing", "pushing_claim"]

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 1.0
"""How often a client is told that its chunk still waits."""

PushResponse = message("PushResponse")
Refusal = message("Refusal")


@dataclass(slots=True)
class _Env:
    """How far an env came in this call."""

    next_seq: int
    is_ended: bool
    episode_return: float = 0.0
    length: int = -1


class Pushing:
    """One call of ``ReplayService.Push``; lives on an event loop.

    Args:
        claim: Whose streams.
        contract: What the rows must be.
        append: Stores a chunk; False when it had been stored before.
        newest: The weights that act now.
        meter: Counts.
    """

    def __init__(
        self,
        claim: Claim,
        contract: Contract,
        append: Append,
        newest: Callable[[PolicyVersion], Awaitable[PolicyVersion]],
        meter: GatewayMeter,
    ) -> None:
        self._claim = claim
        self._contract = contract
        self._append = append
        self._newest = newest
        self._meter = meter
        self._envs: dict[int, _Env] = {}

    async def take(self, request: Any) -> AsyncIterator[Any]:
        """Store the chunk of a ``PushRequest``; gives what its client is to be told."""
        try:
            rows = self._read(request)
            await self._check_version(request.version)
        except WireError as error:
            yield self._refuse(request, str(error))
            return
        storing = asyncio.ensure_future(self._store(self._chunk(request, rows)))
        try:
            while not (await asyncio.wait([storing], timeout=TOLD_EVERY_S))[0]:
                waits = PushResponse(env=request.env, stored=request.seq)
                waits.hold.FromMilliseconds(int(TOLD_EVERY_S * 1000))
                yield waits
        finally:
            storing.cancel()
        try:
            is_new = storing.result()
        except EpisodeOverError as error:  # in an earlier call
            yield self._refuse(request, str(error))
            return
        self._count(request, rows, is_new=is_new)
        yield PushResponse(env=request.env, stored=request.seq + 1)

    def _refuse(self, request: Any, why: str) -> Any:
        self._meter.refused("INVALID_ARGUMENT")
        refusal = Refusal(code="INVALID_ARGUMENT", message=why)
        return PushResponse(env=request.env, stored=request.seq, refusal=refusal)

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        """The rows, by column.

        Raises:
            WireError: Says what is wrong with them; nothing has changed then.
        """
        if request.env >= self._claim.num_envs:
            raise WireError(f"env: got {request.env}, expected 0 to {self._claim.num_envs - 1}")
        if request.seq > MOST_SEQ:
            raise WireError(f"seq: got {request.seq}, expected at most {MOST_SEQ}")
        check_source(request.source, "source")
        expected = {spec.name: spec for spec in self._contract.row}
        if set(request.column) != set(expected):
            got = sorted(name[:80] for name in request.column)[: 2 * len(expected)]
            raise WireError(f"column: got {got}, expected {sorted(expected)}")
        most = self._contract.limits.max_rows_per_chunk
        count = next(iter(request.column["is_first"].shape), 0)
        if not 1 <= count <= most:
            raise WireError(f"column 'is_first': got {count} rows, expected 1 to {most}")
        rows = {
            name: decode_tensor(request.column[name], spec, (count,), f"column {name!r}")
            for name, spec in expected.items()
        }
        for spec in self._contract.action:
            name = column_name(ACTION, spec.name)
            check_action(rows[name], spec, f"column {name!r}")
        self._check_flags(request, rows)
        return rows

    def _check_flags(self, request: Any, rows: Mapping[str, np.ndarray]) -> None:
        is_first = rows["is_first"]
        is_last = rows["terminated"] | rows["truncated"]
        if is_first[1:].any():
            raise WireError("column 'is_first': got True after the first row, where a chunk begins")
        if is_last[:-1].any():
            raise WireError("column 'terminated': an episode ends before the last row of its chunk")
        if is_first[0] and is_last[0]:
            raise WireError("column 'is_first': a row that begins an episode cannot end it, too")
        if is_first[0] and rows["reward"][0] != 0:
            raise WireError("column 'reward': got another than 0 where is_first, expected 0")
        known = self._envs.get(request.env)
        if known is None or request.seq != known.next_seq:
            return
        if known.is_ended and not is_first[0]:
            raise WireError(
                f"column 'is_first': chunk {request.seq} goes on with an episode that ended in "
                f"chunk {request.seq - 1}"
            )

    async def _check_version(self, version: Any) -> None:
        given = PolicyVersion(version.incarnation, version.update)
        if given.update > LARGEST_VERSION:
            raise WireError(
                f"version.update: got {given.update}, expected at most {LARGEST_VERSION}"
            )
        newest = await self._newest(given) if given > NO_POLICY else NO_POLICY
        if given > newest:
            raise WireError(f"version: got {given}, and the newest weights are {newest}")

    def _chunk(self, request: Any, rows: dict[str, np.ndarray]) -> Chunk:
        count = len(rows["is_first"])
        own = {
            name: spec.zeros(count)
            for name, spec in self._contract.columns.items()
            if name not in rows
        }
        frames = {
            name: EncodedColumn.of_frame(request.column[name].data, array)
            for name, array in rows.items()
            if request.column[name].encoding == ZSTD
        }
        ready = {name: column for name, column in frames.items() if column is not None}
        notes = {} if request.source == POLICY else {CHUNK_SOURCES: [request.source] * count}
        return make_chunk(
            StreamId(self._claim.slot, self._claim.incarnation, request.env),
            request.seq,
            PolicyVersion(request.version.incarnation, request.version.update),
            {**rows, **own, **ready},
            notes=notes,
        )

    async def _store(self, chunk: Chunk) -> bool:
        while True:
            try:
                return bool(await self._append(chunk))
            except EpisodeOverError:
                raise
            except StateError as error:
                logger.warning("%s; chunk %d of %s is sent again", error, chunk.seq, chunk.stream)
                await asyncio.sleep(AGAIN_S)

    def _count(self, request: Any, rows: Mapping[str, np.ndarray], *, is_new: bool) -> None:
        env = self._envs.setdefault(request.env, _Env(request.seq, is_ended=False))
        if request.seq > env.next_seq:
            env.length = -1  # rows are missing
        if request.seq >= env.next_seq:
            env.next_seq = request.seq + 1
            env.is_ended = bool(rows["terminated"][-1] or rows["truncated"][-1])
        if not is_new:
            env.length = -1
            return
        count = len(rows["is_first"])
        begins = int(rows["is_first"][0])
        self._meter.stored([request.source] * count)
        self._meter.committed(count - begins)
        if begins:
            env.length = 0
            env.episode_return = 0.0
        if env.length >= 0:
            env.length += count - begins
            env.episode_return += float(rows["reward"].sum())
        if env.is_ended and env.length > 0:
            reason = "terminated" if rows["terminated"][-1] else "truncated"
            self._meter.episode(env.episode_return, env.length, reason)
            env.length = -1


def pushing_claim(secret: bytes, key: bytes) -> Claim:
    """The claim of a secret that allows to push.

    Raises:
        RefusalError: If there is none, or it is another kind of session's.
    """
    if not secret:
        raise RefusalError("UNAUTHENTICATED", "session: no secret came with the call")
    claim = Claim.of(secret, key)
    if not claim.push:
        raise RefusalError(
            "FAILED_PRECONDITION",
            "session: this one was opened to act; open another one with push = true",
        )
    return claim
