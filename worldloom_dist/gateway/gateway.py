"""The gateway without its transport: sessions and their leases.

    client --Open--> session --Act--> answers, rows --> replay
    silent for a lease: the session is closed, its episodes count as truncated
    gateway dies: the client opens with `resume` here or elsewhere; the old streams are fenced
        at their shard, which says how far they got, and the session goes on from there

Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.metrics import MetricMap
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom_client.wire import message
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.actors.stream_writer import ChunkBuilder
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.decisions import Decider
from worldloom_dist.gateway.meter import GatewayMeter
from worldloom_dist.gateway.pushing import Pushing, pushing_claim
from worldloom_dist.gateway.questions import read_question
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.gateway.replies import act_response, open_response
from worldloom_dist.gateway.secret import MAX_SECRET_BYTES, Claim
from worldloom_dist.gateway.session import Session
from worldloom_dist.gateway.stream import Append, Backlog, StreamSender
from worldloom_dist.ports import FIRST_GATEWAY_SLOT, SESSION_BITS

__all__ = ["Fence", "Gateway"]

logger = logging.getLogger(__name__)

TEND_EVERY_S = 0.25
REMEMBERED = 4096
"""Opens and sessions that are over, of which it is known what became of them."""
KEY_BYTES = 16
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
DRAIN_S = 10.0
PUSH_SLOTS = 1024
"""Streams of clients that push are spread over this many slots, and so over all shards."""

Fence = Callable[[int, int], Awaitable[Mapping[int, int]]]
"""Takes slot and incarnation of streams that no one may write any more; answers per env the step
after the last one that is stored, where it knows of one.
"""


class Gateway:
    """Sessions of one gateway.

    Args:
        contract: What clients are promised.
        decide: Answers; see :class:`worldloom_dist.gateway.decisions.Decider`.
        version: The weights that act, as far as is known.
        key: Signs the secrets of sessions; the same for all gateways of a run.
        append: Stores a chunk; None where nothing is stored.
        fence: Closes the streams of a gateway that is gone.
        forget: Told the slot of a session that is over.
        index: Which gateway of the run.
        incarnation: Of this process; no process of this gateway may have the same.
        chunk_rows, max_chunk_age_s: When a chunk is closed.
        may_explore: False where sessions act only as evaluations do.
        clock: Monotonic seconds.

    Attributes:
        meter: What it counts.
    """

    def __init__(
        self,
        contract: Contract,
        decide: Decider,
        version: Callable[[], PolicyVersion],
        *,
        key: bytes,
        append: Append | None = None,
        fence: Fence | None = None,
        forget: Callable[[int], object] = lambda _: None,
        index: int = 0,
        incarnation: int = 0,
        chunk_rows: int = 64,
        max_chunk_age_s: float = 1.0,
        may_explore: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract = contract
        self.meter = GatewayMeter(contract.env_spec.action_repeat)
        self._decide = decide
        self._version = version
        self._key = key
        self._append = append
        self._fence = fence
        self._forget = forget
        self._chunk_rows = chunk_rows
        self._max_age_s = max_chunk_age_s
        self._may_explore = may_explore
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}
        self._over: OrderedDict[bytes, str] = OrderedDict()
        self._opened: OrderedDict[bytes, asyncio.Task[Any]] = OrderedDict()
        self._free_slots: list[int] = []
        self._first_slot = FIRST_GATEWAY_SLOT * (1 + index)
        self._next_slot = self._first_slot
        self._next_incarnation = incarnation << SESSION_BITS
        self._ending: dict[asyncio.Task[None], Session] = {}
        self._is_draining = False
        self._answer_s = 0.0

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    def describe(self) -> Any:
        """The ``DescribeResponse``."""
        return self.contract.describe(self._version())

    async def open(self, request: Any) -> Any:
        """Open a session, or resume one; an Open that comes again is the same.

        Raises:
            RefusalError: Says why not.
        """
        self._check_open(request)
        key = request.idempotency_key
        if not key:
            return await self._open(request)
        task = self._opened.get(key)
        if task is None:
            task = self._opened[key] = asyncio.ensure_future(self._open(request))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
            while len(self._opened) > REMEMBERED:
                self._opened.popitem(last=False)
        return await asyncio.shield(task)

    def session(self, secret: bytes) -> Session:
        """The session of a secret.

        Raises:
            RefusalError: If there is none, and why.
        """
        session = self._sessions.get(secret)
        if session is not None:
            return session
        if not secret:
            raise RefusalError("UNAUTHENTICATED", "session: no secret came with the call")
        if Claim.of(secret, self._key).push:
            raise RefusalError(
                "FAILED_PRECONDITION",
                "session: this one was opened to push; open another one with push = false",
            )
        why = self._over.get(secret, "this gateway does not know it")
        raise RefusalError("NOT_FOUND", f"session: {why}; open it again with `resume`")

    async def act(self, secret: bytes, request: Any) -> Any:
        """Answer an ``ActRequest``.

        Raises:
            RefusalError: Says why not.
        """
        started = self._clock()
        session = self.session(secret)
        question = read_question(request, self.contract, session.claim.num_envs)
        answer = await session.ask(question)
        seconds = self._clock() - started
        self._answer_s += 0.1 * (seconds - self._answer_s)
        self.meter.answered(seconds, is_held=answer.hold_s > 0)
        return act_response(answer, self.contract)

    def pushing(self, secret: bytes) -> Pushing:
        """Where the chunks of one call of ``Push`` go.

        Raises:
            RefusalError: If the secret is none for that, or this server takes no rows.
        """
        if self._append is None:
            raise RefusalError("FAILED_PRECONDITION", "push: this server stores no rows")
        claim = pushing_claim(secret, self._key)
        if self._is_draining:
            raise RefusalError("UNAVAILABLE", "this gateway ends; push to another one")
        return Pushing(claim, self.contract, self._append, self._newest, self.meter)

    async def close(self, secret: bytes) -> Any:
        """End a session; returns the ``CloseResponse`` when its rows are stored, or after a time.

        Raises:
            RefusalError: If there is none.
        """
        session = self.session(secret)
        ending = self._end(secret, session, "closed", "it was closed")
        await asyncio.wait([ending], timeout=DRAIN_S)
        return message("CloseResponse")(
            position=[
                message("EnvPosition")(env=env, stored=stored, next_step=step)
                for env, (stored, step) in enumerate(session.positions)
            ]
        )

    async def tend_for_ever(self) -> None:
        """Send old chunks, and end sessions whose clients are silent."""
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            self.tend()

    def tend(self) -> None:
        """Once what :meth:`tend_for_ever` does again and again."""
        now = self._clock()
        lease_s = self.contract.limits.lease_s
        for secret, session in list(self._sessions.items()):
            if session.is_fenced:
                session.cancel()
                self._end(secret, session, "fenced", "it goes on at another gateway")
            elif not session.is_busy and now - session.heard_s > lease_s:
                logger.info("session of %s is silent and ends", session.label)
                self._end(secret, session, "lease", f"its lease of {lease_s:g} s is over")
            else:
                session.tend()

    async def drain(self, within_s: float = DRAIN_S) -> int:
        """End every session and wait for its rows; returns the rows that could not be stored."""
        self._is_draining = True
        for secret, session in list(self._sessions.items()):
            self._end(secret, session, "closed", "this gateway ends")
        ending = dict(self._ending)
        if ending:
            await asyncio.wait(ending, timeout=within_s)
        return sum(session.unstored for session in ending.values())

    def drain_metrics(self) -> tuple[MetricMap, dict[str, Any]]:
        """Metrics and facts since the last call."""
        return self.meter.drain(len(self._sessions))

    @property
    def unstored(self) -> int:
        """Rows that would be lost if this process died now and their clients never came back."""
        sessions = [*self._sessions.values(), *self._ending.values()]
        return sum(session.unstored for session in sessions)

    # ---- opening and ending ----

    def _check_open(self, request: Any) -> None:
        limits = self.contract.limits
        if self._is_draining:
            raise RefusalError("UNAVAILABLE", "this gateway ends; open the session at another one")
        if not LABEL.fullmatch(request.client):
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"client: got {request.client[:80]!r}, expected 1 to 64 letters, digits, _ . or -",
            )
        if not 1 <= request.num_envs <= limits.max_envs:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"num_envs: got {request.num_envs}, expected 1 to {limits.max_envs}",
            )
        if len(request.idempotency_key) not in (0, KEY_BYTES):
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"idempotency_key: got {len(request.idempotency_key)} bytes, expected {KEY_BYTES}",
            )
        if len(request.resume) > MAX_SECRET_BYTES:
            raise RefusalError(
                "UNAUTHENTICATED",
                f"resume: got {len(request.resume)} bytes, which is not given out by this run: "
                f"expected at most {MAX_SECRET_BYTES}; give the secret of a session",
            )
        if request.push and self._append is None:
            raise RefusalError("FAILED_PRECONDITION", "push: this server stores no rows")
        if request.push and request.resume:
            raise RefusalError(
                "INVALID_ARGUMENT",
                "resume: a session that pushes needs none; its secret is good for the whole run",
            )
        if request.store and self._append is None:
            raise RefusalError(
                "FAILED_PRECONDITION", "store: this server stores no rows; open with store = false"
            )
        if request.explore and not self._may_explore:
            raise RefusalError(
                "FAILED_PRECONDITION",
                "explore: this server acts without noise; open with explore = false, or start it "
                "with --explore",
            )
        self.contract.check_fingerprint(request.fingerprint)

    def _forget_failed(self, key: bytes, task: asyncio.Task[Any]) -> None:
        """Let go of an Open that failed: its traceback holds the whole request."""
        has_failed = task.cancelled() or task.exception() is not None
        if has_failed and self._opened.get(key) is task:
            del self._opened[key]

    async def _open(self, request: Any) -> Any:
        if request.push:
            return self._open_to_push(request)
        known = self._sessions.get(request.resume)
        if known is not None:
            known.touch()
            self.meter.opened(is_resumed=True)
            return self._response(request.resume, known, request)
        begin = await self._begin_of(request) if request.resume else None
        limit = self.contract.limits.max_sessions
        if len(self._sessions) + len(self._ending) >= limit:
            raise RefusalError(
                "RESOURCE_EXHAUSTED",
                f"sessions: all {limit} are open, or have rows that wait to be stored; close one, "
                "or come later",
            )
        self._take_incarnation()
        slot = self._free_slots.pop() if self._free_slots else self._take_slot()
        claim = Claim(
            slot,
            self._next_incarnation,
            request.num_envs,
            request.store,
            request.explore,
            begin if begin is not None and any(begin) else [],
        )
        session = Session(
            claim,
            self.contract,
            self._decide,
            sender=lambda env, backlog: self._sender(claim, env, backlog),
            chunk_rows=self._chunk_rows,
            meter=self.meter,
            begin=begin,
            label=request.client,
            clock=self._clock,
        )
        secret = claim.sign(self._key)
        self._sessions[secret] = session
        self.meter.opened(is_resumed=begin is not None)
        return self._response(secret, session, request)

    def _open_to_push(self, request: Any) -> Any:
        """Such a session is a name, and nothing of it is kept here."""
        self._take_incarnation()
        slot = self._first_slot + self._next_incarnation % PUSH_SLOTS
        claim = Claim(slot, self._next_incarnation, request.num_envs, True, False, push=True)
        self.meter.opened(is_resumed=False)
        return message("OpenResponse")(
            secret=claim.sign(self._key), slot=slot, incarnation=claim.incarnation
        )

    async def _newest(self, given: PolicyVersion) -> PolicyVersion:
        """The weights that act; looks closer where ``given`` is newer than what is known."""
        known = self._version()
        if given <= known:
            return known
        none = np.zeros(0, np.int64)
        try:
            reply = await self._decide(ActRequest(self._first_slot, 0, none, {}, none.astype(bool)))
        except StateError as error:
            raise RefusalError(
                "UNAVAILABLE", f"the policy does not answer just now ({error}); push again"
            ) from error
        return max(known, self._version(), reply.version)

    async def _begin_of(self, request: Any) -> list[int]:
        """The steps from which a session goes on that another process had."""
        claim = Claim.of(request.resume, self._key)
        if claim.push:
            raise RefusalError(
                "INVALID_ARGUMENT",
                "resume: this session was opened to push, which needs no resume",
            )
        if claim.num_envs != request.num_envs:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"num_envs: got {request.num_envs}, and the session that is resumed has "
                f"{claim.num_envs}",
            )
        known: Mapping[int, int] = {}
        if claim.store and self._fence is not None:
            try:
                known = await self._fence(claim.slot, claim.incarnation)
            except StateError as error:
                raise RefusalError(
                    "UNAVAILABLE", f"resume: replay does not answer just now ({error}); try again"
                ) from error
        return [known.get(env, claim.begin_of(env)) for env in range(claim.num_envs)]

    def _take_incarnation(self) -> None:
        """Name the next session; the names of the next process are none of ours."""
        if (self._next_incarnation + 1) % 2**SESSION_BITS == 0:
            raise RefusalError(
                "RESOURCE_EXHAUSTED",
                f"sessions: this gateway has opened all {2**SESSION_BITS - 1} that it can name; "
                "start it again, or open one at another",
            )
        self._next_incarnation += 1

    def _take_slot(self) -> int:
        slot = self._next_slot
        self._next_slot += 1
        return slot

    def _sender(self, claim: Claim, env: int, backlog: Backlog) -> StreamSender | None:
        if not claim.store or self._append is None:
            return None
        builder = ChunkBuilder(
            StreamId(claim.slot, claim.incarnation, env),
            self.contract.columns,
            chunk_rows=self._chunk_rows,
            max_age_s=self._max_age_s,
            clock=self._clock,
        )
        return StreamSender(
            builder,
            self._append,
            first_step=claim.begin_of(env),
            on_stored=self.meter.stored,
            backlog=backlog,
        )

    def _response(self, secret: bytes, session: Session, request: Any) -> Any:
        warning = ""
        if request.control_hz > 0 and self._answer_s > 1.0 / request.control_hz:
            warning = (
                f"control_hz: a decision takes {self._answer_s * 1000:.1f} ms here, longer than "
                f"{1000 / request.control_hz:.1f} ms"
            )
        return open_response(secret, session, self.contract, warning)

    def _end(self, secret: bytes, session: Session, reason: str, why: str) -> asyncio.Task[None]:
        self._sessions.pop(secret, None)
        self._over[secret] = why
        while len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
        self.meter.ended(reason)
        session.close()
        task = asyncio.ensure_future(self._finish(session))
        self._ending[task] = session
        task.add_done_callback(self._ending.pop)
        return task

    async def _finish(self, session: Session) -> None:
        await session.drained()
        self._free_slots.append(session.claim.slot)
        self._forget(session.claim.slot)
