"""One session: which questions its client asked, what was answered, and the rows that follow.

    question k of an env (obs, reward, flags)  --decide-->  answer k (action, latents)
    question k + 1 (and what ran in place of answer k)      ->  row k is complete

A row waits for the next question of its env, unless it is the last of its episode. Where an episode
breaks off (the session ends, or the client begins another one), the row that waits becomes the last
one and counts as truncated: what it observed is what was last seen. Nothing is invented.

Most questions are of all envs in mid-episode, one step further than the one before. Nothing is done
env by env for those: they are piled up, and dealt out to the envs some at a time, or as soon as
another question comes or the state of an env matters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import NO_POLICY
from worldloom.core.specs import ACTION, OBS, all_finite, column_name
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.decisions import Decider
from worldloom_dist.gateway.memory import Answer, Decision, EnvState, Row
from worldloom_dist.gateway.meter import GatewayMeter
from worldloom_dist.gateway.questions import Executed, Question
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.gateway.secret import Claim
from worldloom_dist.gateway.stream import POLICY, Backlog, StreamSender

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
        self.heard_s = clock()
        self._backlog = Backlog()
        self._envs = [EnvState(sender(env, self._backlog)) for env in range(claim.num_envs)]
        for env, step in zip(self._envs, begin or (), strict=False):
            env.next_step = step
            env.is_taken_over = True
        self._all = list(range(claim.num_envs))
        self._all_envs = np.arange(claim.num_envs)
        self._is_storing = all(env.sender is not None for env in self._envs)
        self._newest: Decision | None = None
        """Every env's newest question, where that is the same one, in mid-episode."""
        self._next_steps: list[int] = []
        self._pile: list[Decision] = []
        """Answered questions before ``_newest`` whose rows are complete; the first is what envs
        still have as their row."""
        self._piled_at = 0.0
        self._names = {key: column_name(ACTION, key) for key in contract.env_spec.action}
        self._obs_names = {key: column_name(OBS, key) for key in contract.env_spec.obs}

    @property
    def is_busy(self) -> bool:
        """True while its client waits for an answer."""
        return self._busy > 0

    @property
    def is_fenced(self) -> bool:
        """True when another session has its envs."""
        return any(env.sender is not None and env.sender.is_fenced for env in self._envs)

    @property
    def unstored(self) -> int:
        """Rows that wait for replay."""
        return self._backlog.rows

    @property
    def positions(self) -> list[tuple[int, int]]:
        """Per env: steps before the first number are stored or left out, the second comes next."""
        self._deal()
        return [(self._stored(env), env.next_step) for env in self._envs]

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
        newest = self._follow(question)
        if newest is None:
            self._deal()
            self._check(question)
            rows = self._take(question)
        self._busy += 1
        try:
            if newest is not None:
                await self._decided(newest)
            else:
                await self._answer(rows)
        finally:
            self._busy -= 1
            self.heard_s = self._clock()
        if newest is not None and newest.reply is not None:
            return self._answer_of(newest.reply, question)
        return self._collect(question, rows)

    def close(self) -> None:
        """Break off every episode that is open, and send what there is."""
        self._deal()
        self._newest = None
        for env in self._envs:
            self._break_off(env)
            if env.sender is not None:
                env.sender.close_chunk()

    async def drained(self) -> None:
        """Returns when every row is stored."""
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
        self._deal()
        for env in self._envs:
            if env.sender is not None:
                env.sender.close_if_old()

    # ---- what a question must be ----

    def _check(self, question: Question) -> None:
        is_new = False
        for place, number in enumerate(question.envs):
            is_new |= self._check_step(number, question, place)
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

    def _check_step(self, number: int, question: Question, place: int) -> bool:
        """True when the question is new for this env, and False when it comes again."""
        env = self._envs[number]
        step = question.steps[place]
        row = env.row
        if row is not None and step == row.step:
            return False
        is_first = question.begins[place]
        if env.is_taken_over:
            least = max(0, env.next_step - 1)
            if step < least:
                raise RefusalError(
                    "INVALID_ARGUMENT",
                    f"step: env {number} got {step}, expected {env.next_step} or a later one; "
                    "the ones before are stored",
                )
            return True
        if step != env.next_step:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"step: env {number} got {step}, expected {env.next_step}"
                + (f", or {row.step} again" if row is not None else ""),
            )
        if row is not None and row.decision.reply is None:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"step: env {number} got {step} before step {row.step} was answered",
            )
        if env.is_ended and not is_first and not question.skip_store:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"is_first: env {number} has no open episode at step {step}; set is_first",
            )
        return True

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
                self._enter(question.envs[place], question, place, decision, index)
        rows = [row for number in question.envs if (row := self._envs[number].row) is not None]
        self._note_newest(question, rows)
        return rows

    # ---- questions of all envs in mid-episode ----

    def _note_newest(self, question: Question, rows: list[Row]) -> None:
        """See whether the next question may follow this one."""
        self._newest = None
        if question.envs != self._all or any(env.is_skipping for env in self._envs):
            return
        newest = rows[0].decision
        for place, row in enumerate(rows):
            if row.decision is not newest or row.place != place or row.is_last:
                return
        self._newest = newest
        self._next_steps = [step + 1 for step in question.steps]

    def _follow(self, question: Question) -> Decision | None:
        """Enter a question that is of all envs, one step after their newest one, with nothing to
        tell but how it went on; None for any other one.
        """
        before = self._newest
        if (
            before is None
            or before.reply is None
            or not question.is_plain
            or question.steps != self._next_steps
            or question.envs != self._all
        ):
            return None
        self._check_room()
        if not self._pile:
            self._piled_at = self._clock()
        self._pile.append(before)
        self._newest = Decision(
            ActRequest(
                self.claim.slot,
                self.claim.incarnation,
                self._all_envs,
                question.obs,
                question.is_first,
                explore=self.claim.explore,
            ),
            question.reward,
            question.terminated,
            question.truncated,
            question.rewards,
            may_end=False,
        )
        if self._is_storing:
            self._backlog.rows += len(self._all)
        self._next_steps = [step + 1 for step in question.steps]
        newest = self._newest
        if len(self._pile) >= self._chunk_rows:
            self._deal()
        return newest

    def _deal(self) -> None:
        """Give every env its rows of the pile."""
        pile = self._pile
        newest = self._newest
        if not pile or newest is None:
            return
        self._pile = []
        if self._is_storing:
            self._backlog.rows -= len(pile) * len(self._all)
        for env in self._envs:
            self._commit(env)
        for first, last in _alike(pile, 1):
            self._deal_run(pile[first:last], len(pile) - first)
        for number, env in enumerate(self._envs):
            env.next_step = self._next_steps[number]
            env.row = Row(env.next_step - 1, newest, number, is_first=False, is_last=False)
            if env.length >= 0:
                env.length += len(pile)
                for decision in (*pile[1:], newest):
                    env.episode_return += decision.rewards[number]

    def _deal_run(self, run: list[Decision], back: int) -> None:
        """Rows that one version chose; the first of them are ``back`` steps before the newest."""
        reply = run[0].reply
        assert reply is not None
        if run[0].lost_carry:  # then it is alone
            for number, env in enumerate(self._envs):
                step = self._next_steps[number] - 1 - back
                env.row = Row(step, run[0], number, is_first=False, is_last=False)
                self._commit(env)
            return
        columns = {
            name: np.stack([decision.columns[name] for decision in run])
            for name in (run[0].columns if self._is_storing else ())
        }
        for number, env in enumerate(self._envs):
            env.has_carry = reply.version != NO_POLICY
            if env.sender is not None:
                rows = {name: value[:, number] for name, value in columns.items()}
                step = self._next_steps[number] - 1 - back
                env.sender.extend(rows, len(run), step, reply.version, self._piled_at)
                self._meter.committed(len(run))

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

    def _enter(
        self, number: int, question: Question, place: int, decision: Decision, index: int
    ) -> None:
        env = self._envs[number]
        step = question.steps[place]
        is_first = question.begins[place]
        is_last = question.ends[place]
        known = step < env.next_step
        if is_first:
            self._break_off(env)
            env.is_skipping = False
        else:
            is_cut = question.skip_store and not env.is_skipping
            self._commit(env, executed=question.executed.get(number), is_cut=is_cut)
        if question.skip_store:
            env.is_skipping = True
        if env.is_taken_over and not is_first:
            env.has_carry = True
        env.is_taken_over = False
        env.row = Row(step, decision, index, is_first, is_last, is_stored=known)
        env.next_step = step + 1
        env.is_ended = is_last
        self._count_episode(env, question, place)

    def _count_episode(self, env: EnvState, question: Question, place: int) -> None:
        if question.begins[place]:
            env.episode_return = 0.0
            env.length = 0
        elif env.length >= 0:
            env.episode_return += question.rewards[place]
            env.length += 1
        if env.is_ended and env.length >= 0:
            reason = "terminated" if question.terminated[place] else "truncated"
            self._meter.episode(env.episode_return, env.length, reason)
            env.length = -1

    def _break_off(self, env: EnvState) -> None:
        """The open episode, if any, ends with the row that waits."""
        if env.row is not None and not env.row.is_stored:
            self._commit(env, is_cut=True)
        env.is_ended = True
        env.length = -1

    def _commit(
        self, env: EnvState, executed: Executed | None = None, *, is_cut: bool = False
    ) -> None:
        """Hand the row that waits on to replay, if it is not there yet."""
        row = env.row
        if row is None or row.is_stored or row.decision.reply is None:
            return
        row.is_stored = True
        if env.sender is None:
            return
        if env.is_skipping:
            env.sender.leave_out(row.step)
            self._meter.left_out(1)
            return
        decision = row.decision
        reply = decision.reply
        assert reply is not None
        columns: Mapping[str, np.ndarray] = decision.columns
        index = row.place
        if executed is not None or is_cut:
            columns = {name: value[index : index + 1] for name, value in columns.items()}
            index = 0
        source = POLICY
        if executed is not None:
            source = executed.source
            columns = {
                **columns,
                **{self._names[key]: value[None] for key, value in executed.action.items()},
            }
        if is_cut and not row.is_first:
            columns = {**columns, "truncated": np.array([True])}
        self._meter.committed(int(not row.is_first))
        was_lost = bool(reply.carry_reset[row.place]) and env.has_carry
        env.has_carry = reply.version != NO_POLICY
        env.sender.add(
            columns,
            index,
            row.step,
            reply.version,
            source,
            is_first=row.is_first,
            is_last=row.is_last or is_cut,
            carry_reset=was_lost,
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
                self._commit(env)

    def _columns(self, decision: Decision, reply: ActReply) -> dict[str, np.ndarray]:
        columns = {**reply.extras, **decision.flags}
        for key, name in self._obs_names.items():
            columns[name] = decision.request.obs[key]
        for key, name in self._names.items():
            columns[name] = reply.action[key]
        return columns

    def _collect(self, question: Question, rows: Sequence[Row]) -> Answer:
        stored = [self._stored(self._envs[number]) for number in question.envs]
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
        envs = self._envs
        if self._is_storing:
            stored = [env.sender.stored for n in question.envs if (env := envs[n]).sender]
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

    def _stored(self, env: EnvState) -> int:
        return env.sender.stored if env.sender is not None else env.next_step


def _alike(pile: Sequence[Decision], first: int) -> Iterator[tuple[int, int]]:
    """Where runs of the pile begin and end that one version chose; where a carry was lost, one
    question is a run of its own.
    """
    while first < len(pile):
        last = first + 1
        while last < len(pile) and _is_alike(pile[first], pile[last]):
            last += 1
        yield first, last
        first = last


def _is_alike(one: Decision, other: Decision) -> bool:
    assert one.reply is not None
    assert other.reply is not None
    return one.reply.version == other.reply.version and not (one.lost_carry or other.lost_carry)
