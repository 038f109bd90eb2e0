"""One session: which questions its client asked, what was answered, and the rows that follow.

    question k of an env (obs, reward, flags)  --decide-->  answer k (action, latents)
    question k + 1 (and what ran in place of answer k)      ->  row k is complete

A row waits for the next question of its env, unless it is the last of its episode (``EnvRows``).
Questions of all envs in mid-episode are entered whole (``Pile``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY
from worldloom.core.specs import ACTION, OBS, all_finite, column_name
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.decisions import Decider
from worldloom_dist.gateway.env_rows import EnvRows
from worldloom_dist.gateway.memory import Answer, Decision, Row
from worldloom_dist.gateway.meter import GatewayMeter
from worldloom_dist.gateway.pile import Pile
from worldloom_dist.gateway.questions import Question
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.gateway.secret import Claim
from worldloom_dist.gateway.stream import Backlog, StreamSender

__all__ = ["Session"]

logger = logging.getLogger(__name__)

HOLD_S = 0.1


class Session:
    """One client's envs; lives on an event loop.

    Args:
        claim: Who it is.
        contract: What it was promised.
        decide: Answers.
        sender: Makes the writing end of an env; None where nothing is stored.
        chunk_rows: Rows of a full chunk, the unit of the limits.
        meter: Counts.
        begin: Per env the step that it goes on from, when another gateway had it.
        clock: Monotonic seconds.

    Attributes:
        heard_s: When its client was last heard of.
        label: What its client calls itself.
    """

    def __init__(
        self,
        claim: Claim,
        contract: Contract,
        decide: Decider,
        *,
        sender: Callable[[int, Backlog], StreamSender | None],
        chunk_rows: int,
        meter: GatewayMeter,
        begin: Sequence[int] | None = None,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.claim = claim
        self.label = label
        self._contract = contract
        self._decide = decide
        self._chunk_rows = chunk_rows
        self._meter = meter
        self._clock = clock
        self._busy = 0
        self._deciding: set[asyncio.Task[None]] = set()
        self.heard_s = clock()
        self._backlog = Backlog()
        self._names = {key: column_name(ACTION, key) for key in contract.env_spec.action}
        self._envs = [
            EnvRows(
                env,
                sender(env, self._backlog),
                self._names,
                meter,
                begin[env] if begin else None,
            )
            for env in range(claim.num_envs)
        ]
        self._pile = Pile(claim, self._envs, self._backlog, chunk_rows, clock)
        self._is_storing = all(env.sender is not None for env in self._envs)
        self._obs_names = {key: column_name(OBS, key) for key in contract.env_spec.obs}

    @property
    def is_busy(self) -> bool:
        """True while its client waits for an answer."""
        return self._busy > 0

    @property
    def is_fenced(self) -> bool:
        """True when another session has its envs."""
        return any(env.is_fenced for env in self._envs)

    @property
    def unstored(self) -> int:
        """Rows that wait for replay."""
        return self._backlog.rows

    @property
    def positions(self) -> list[tuple[int, int]]:
        """Per env: steps before the first number are stored or left out, the second comes next."""
        self._pile.deal()
        return [(env.stored, env.next_step) for env in self._envs]

    def touch(self) -> None:
        """Its client was heard of."""
        self.heard_s = self._clock()

    async def ask(self, question: Question) -> Answer:
        """Answer a question; one that comes again gets the same answer.

        Raises:
            RefusalError: If it does not fit what came before; nothing has changed then.
        """
        self.heard_s = self._clock()
        rows: list[Row] = []
        whole: Decision | None = None
        if self._pile.follows(question):
            self._check_room()
            whole = self._pile.add(question)
        else:
            self._pile.deal()
            self._check(question)
            rows = self._take(question)
        self._busy += 1
        try:
            if whole is not None:
                await self._decided(whole)
            else:
                await self._answer(rows)
        finally:
            self._busy -= 1
            self.heard_s = self._clock()
        if whole is not None and whole.reply is not None:
            return self._answer_of(whole.reply, question)
        return self._collect(question, rows)

    def close(self) -> None:
        """Break off every episode that is open, and send what there is."""
        self._pile.end()
        for env in self._envs:
            env.break_off()
            if env.sender is not None:
                env.sender.close_chunk()

    async def drained(self) -> None:
        """Returns when no question is open any more and every row is stored."""
        while self._deciding:
            await asyncio.wait(self._deciding)
        for env in self._envs:
            if env.sender is not None:
                await env.sender.drained()

    def cancel(self) -> None:
        """Stop sending."""
        for env in self._envs:
            if env.sender is not None:
                env.sender.cancel()

    def tend(self) -> None:
        """Send chunks that have grown old."""
        self._pile.deal()
        for env in self._envs:
            if env.sender is not None:
                env.sender.close_if_old()

    # ---- what a question must be ----

    def _check(self, question: Question) -> None:
        is_new = False
        for place, number in enumerate(question.envs):
            is_new |= self._envs[number].is_new(question, place)
        if is_new and not question.skip_store:
            self._check_room()

    def _check_room(self) -> None:
        limit = self._contract.limits.refused_chunks * self._chunk_rows * len(self._envs)
        if self.unstored > limit:
            raise RefusalError(
                "RESOURCE_EXHAUSTED",
                f"replay: {self.unstored} rows of this session wait to be stored, and at most "
                f"{limit} may; wait as long as `hold` says, or set skip_store",
            )

    # ---- rows ----

    def _take(self, question: Question) -> list[Row]:
        """The rows of the question: those that are new are entered."""
        fresh = []
        for place, number in enumerate(question.envs):
            row = self._envs[number].row
            if row is None or row.step != question.steps[place]:
                fresh.append(place)
        if fresh:
            decision = self._begin(question, fresh)
            for index, place in enumerate(fresh):
                self._envs[question.envs[place]].enter(question, place, decision, index)
        rows = [row for number in question.envs if (row := self._envs[number].row) is not None]
        self._pile.begin(question, rows)
        return rows

    def _begin(self, question: Question, fresh: list[int]) -> Decision:
        is_whole = len(fresh) == len(question.envs)
        part = slice(None) if is_whole else np.array(fresh)
        begins = question.is_first
        if question.skip_store:  # an episode that was not seen to begin: nothing is remembered
            begins = begins | [self._envs[number].is_unknown for number in question.envs]
        told = [row for row, place in enumerate(fresh) if question.envs[place] in question.executed]
        ran = [question.executed[question.envs[fresh[row]]].action for row in told]
        request = ActRequest(
            self.claim.slot,
            self.claim.incarnation,
            np.array(question.envs, np.int64)[part],
            {key: value[part] for key, value in question.obs.items()},
            begins[part],
            explore=self.claim.explore,
            executed={key: np.stack([one[key] for one in ran]) for key in self._names if ran},
            executed_rows=np.array(told, np.int64),
        )
        return Decision(
            request,
            question.reward[part],
            question.terminated[part],
            question.truncated[part],
            question.rewards if is_whole else [question.rewards[place] for place in fresh],
            may_end=any(question.ends),
        )

    # ---- answers ----

    async def _answer(self, rows: Sequence[Row]) -> None:
        """Wait until every row has an answer. What was begun goes on if the caller is cancelled."""
        for decision in {id(row.decision): row.decision for row in rows}.values():
            if decision.reply is None:
                await self._decided(decision)

    async def _decided(self, decision: Decision) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        decision.waiting.append(answered)
        if decision.task is None:
            decision.task = loop.create_task(self._ask_policy(decision))
            self._deciding.add(decision.task)
            decision.task.add_done_callback(self._deciding.discard)
        try:
            await answered
        except StateError as error:
            raise RefusalError(
                "UNAVAILABLE", f"the policy does not answer just now ({error}); ask again"
            ) from error

    async def _ask_policy(self, decision: Decision) -> None:
        """Let the policy decide, and tell those that wait for it, whatever comes of it."""
        failure: Exception | None = None
        try:
            await self._decide_rows(decision)
        except Exception as error:
            failure = error
        except asyncio.CancelledError:  # another question took its place
            failure = StateError("it was asked something else")
        decision.task = None
        waiting = [answered for answered in decision.waiting if not answered.done()]
        decision.waiting = []
        for answered in waiting:
            if failure is None:
                answered.set_result(None)
            else:
                answered.set_exception(failure)
        if failure is not None and not waiting:
            # no one waits any more; who asks again sees whether it fails again
            logger.warning("a decision failed: %s", failure)

    async def _decide_rows(self, decision: Decision) -> None:
        reply = await self._decide(decision.request)
        for key, value in reply.action.items():
            if value.dtype.kind == "f" and not all_finite(value):
                raise StateError(f"its action {key!r} is not finite")
        decision.columns = self._columns(decision, reply)
        decision.lost_carry = b"\x01" in reply.carry_reset.tobytes()
        decision.reply = reply
        if not decision.may_end:
            return
        for number in decision.request.envs.tolist():
            env = self._envs[number]
            if env.row is not None and env.row.decision is decision and env.row.is_last:
                env.commit()

    def _columns(self, decision: Decision, reply: ActReply) -> dict[str, np.ndarray]:
        columns = {**reply.extras, **decision.flags}
        for key, name in self._obs_names.items():
            columns[name] = decision.request.obs[key]
        for key, name in self._names.items():
            columns[name] = reply.action[key]
        return columns

    def _collect(self, question: Question, rows: Sequence[Row]) -> Answer:
        stored = [self._envs[number].stored for number in question.envs]
        hold_s = self._hold_s()
        if not rows:
            return Answer({}, NO_POLICY, np.zeros(0, bool), stored, hold_s)
        first = rows[0].decision
        assert first.reply is not None
        if all(row.decision is first for row in rows) and len(rows) == first.request.num_rows:
            return self._answer_of(first.reply, question)
        replies = [(row.decision.reply, row.place) for row in rows]
        return Answer(
            {
                key: np.stack([reply.action[key][place] for reply, place in replies if reply])
                for key in first.reply.action
            },
            min(reply.version for reply, _ in replies if reply),
            np.array([reply.carry_reset[place] for reply, place in replies if reply], bool),
            stored,
            hold_s,
        )

    def _answer_of(self, reply: ActReply, question: Question) -> Answer:
        """Where one reply answers the whole question."""
        if self._is_storing:
            stored = [self._envs[number].stored for number in question.envs]
        else:
            stored = [step + 1 for step in question.steps]
        return Answer(
            reply.action,
            reply.version,
            reply.carry_reset,
            stored,
            self._hold_s(),
            reply.waited_s + reply.busy_s,
            reply.model_s,
        )

    def _hold_s(self) -> float:
        limit = self._contract.limits.held_chunks * self._chunk_rows * len(self._envs)
        return HOLD_S if self.unstored > limit else 0.0
