"""The rows of one env of a session: a row waits for the question that follows it, and is then
handed on to replay.

Where an episode breaks off (the session ends, or the client begins another one), the row that waits
becomes the last one and counts as truncated: what it observed is what was last seen. Nothing is
invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from worldloom.core.sequence import NO_POLICY
from worldloom_dist.gateway.memory import Decision, Row
from worldloom_dist.gateway.meter import GatewayMeter
from worldloom_dist.gateway.questions import Executed, Question
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.gateway.stream import POLICY, StreamSender

__all__ = ["EnvRows"]

MOST_STEP = 2**62
"""Of an env that goes on elsewhere: the steps after it can be told, too."""


class EnvRows:
    """One env of a session.

    Args:
        number: Of the session's envs.
        sender: Its writing end; None where nothing is stored.
        action_columns: Column name of each action key.
        meter: Counts.
        begin: The step that it goes on from when another gateway had it, else None.

    Attributes:
        next_step: The step of its next question.
        row: Its newest question.
        is_ended: The next question begins an episode.
        is_skipping: Its rows are none of replay's, until an episode begins.
    """

    def __init__(
        self,
        number: int,
        sender: StreamSender | None,
        action_columns: Mapping[str, str],
        meter: GatewayMeter,
        begin: int | None = None,
    ) -> None:
        self.number = number
        self.sender = sender
        self.next_step = begin or 0
        self.row: Row | None = None
        self.is_ended = True
        self.is_skipping = False
        self._action_columns = action_columns
        self._meter = meter
        self._is_taken_over = begin is not None
        self._has_carry = False
        self._episode_return = 0.0
        self._length = -1

    @property
    def is_unknown(self) -> bool:
        """A row in mid-episode would be of an episode that was not seen to begin."""
        return self.is_ended and not self._is_taken_over

    @property
    def is_fenced(self) -> bool:
        """True when another session has it."""
        return self.sender is not None and self.sender.is_fenced

    @property
    def stored(self) -> int:
        """Steps before this one are stored, or left out."""
        return self.sender.stored if self.sender is not None else self.next_step

    def is_new(self, question: Question, place: int) -> bool:
        """True when the question is new for this env, and False when it comes again.

        Raises:
            RefusalError: If its step does not follow.
        """
        step = question.steps[place]
        row = self.row
        if row is not None and step == row.step:
            return False
        if self._is_taken_over:
            least = max(0, self.next_step - 1)
            if step < least:
                raise RefusalError(
                    "INVALID_ARGUMENT",
                    f"step: env {self.number} got {step}, expected {self.next_step} or a later "
                    "one; the ones before are stored",
                )
            if step > MOST_STEP:
                raise RefusalError(
                    "INVALID_ARGUMENT",
                    f"step: env {self.number} got {step}, expected at most {MOST_STEP}",
                )
            return True
        if step != self.next_step:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"step: env {self.number} got {step}, expected {self.next_step}"
                + (f", or {row.step} again" if row is not None else ""),
            )
        if row is not None and row.decision.reply is None:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"step: env {self.number} got {step} before step {row.step} was answered",
            )
        if self.is_ended and not question.begins[place] and not question.skip_store:
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"is_first: env {self.number} has no open episode at step {step}; set is_first",
            )
        return True

    def enter(self, question: Question, place: int, decision: Decision, index: int) -> None:
        """Let the row at ``place`` of a question follow; it is row ``index`` of the decision."""
        step = question.steps[place]
        is_first = question.begins[place]
        is_last = question.ends[place]
        is_known = step < self.next_step
        if is_first:
            self.break_off()
            self.is_skipping = False
        else:
            is_cut = question.skip_store and not self.is_skipping
            self.commit(question.executed.get(self.number), is_cut=is_cut)
        if question.skip_store:
            self.is_skipping = True
        if self._is_taken_over and not is_first:
            self._has_carry = True
        self._is_taken_over = False
        self.row = Row(step, decision, index, is_first, is_last, is_stored=is_known)
        self.next_step = step + 1
        self.is_ended = is_last
        self._count_episode(question, place)

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Rows in mid-episode followed, the last of which is the newest now; those before it were
        given to ``extend`` or ``commit_one``.
        """
        self.next_step += len(decisions)
        self.row = Row(self.next_step - 1, decisions[-1], self.number, False, False)
        if self._length >= 0:
            self._length += len(decisions)
            for decision in decisions:
                self._episode_return += decision.rewards[self.number]

    def extend(
        self, columns: Mapping[str, np.ndarray], run: Sequence[Decision], step: int, since_s: float
    ) -> None:
        """Hand rows in mid-episode on to replay that one version chose.

        Args:
            columns: Per column ``[len(run), ...]``.
            run: Their decisions.
            step: Of the first one.
            since_s: When the first one came.
        """
        reply = run[0].reply
        assert reply is not None
        self._has_carry = reply.version != NO_POLICY
        if self.sender is not None:
            self.sender.extend(columns, len(run), step, reply.version, since_s)
            self._meter.committed(len(run))

    def commit_one(self, decision: Decision, step: int) -> None:
        """Hand one row in mid-episode on to replay, with all that is to say of it."""
        self.row = Row(step, decision, self.number, is_first=False, is_last=False)
        self.commit()

    def break_off(self) -> None:
        """The open episode, if any, ends with the row that waits."""
        if self.row is not None and not self.row.is_stored:
            self.commit(is_cut=True)
        self.is_ended = True
        self._length = -1

    def commit(self, executed: Executed | None = None, *, is_cut: bool = False) -> None:
        """Hand the row that waits on to replay, if it is not there yet.

        Args:
            executed: What ran in place of the policy's action.
            is_cut: Its episode ends here, truncated.
        """
        row = self.row
        if row is None or row.is_stored or row.decision.reply is None:
            return
        row.is_stored = True
        if self.sender is None:
            return
        if self.is_skipping:
            self.sender.leave_out(row.step)
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
            ran = {self._action_columns[key]: value[None] for key, value in executed.action.items()}
            columns = {**columns, **ran}
        if is_cut and not row.is_first:
            columns = {**columns, "truncated": np.array([True])}
        self._meter.committed(int(not row.is_first))
        was_lost = bool(reply.carry_reset[row.place]) and self._has_carry
        self._has_carry = reply.version != NO_POLICY
        self.sender.add(
            columns,
            index,
            row.step,
            reply.version,
            source,
            is_first=row.is_first,
            is_last=row.is_last or is_cut,
            carry_reset=was_lost,
        )

    def _count_episode(self, question: Question, place: int) -> None:
        if question.begins[place]:
            self._episode_return = 0.0
            self._length = 0
        elif self._length >= 0:
            self._episode_return += question.rewards[place]
            self._length += 1
        if self.is_ended and self._length >= 0:
            reason = "terminated" if question.terminated[place] else "truncated"
            self._meter.episode(self._episode_return, self._length, reason)
            self._length = -1
