"""Questions of all envs of a session, in mid-episode, one step further than the one before.

Most questions are. Nothing is done env by env for those: they are piled up, and dealt out to the
envs some at a time, or as soon as another question comes or the state of an env matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.gateway.env_rows import EnvRows
from worldloom_dist.gateway.memory import Decision, Row
from worldloom_dist.gateway.questions import Question
from worldloom_dist.gateway.secret import Claim
from worldloom_dist.gateway.stream import Backlog

__all__ = ["Pile"]


class Pile:
    """What is not yet dealt out to the envs of a session.

    Args:
        claim: Whose session it is.
        envs: All of its envs.
        backlog: Counts the rows that wait.
        size: Questions that are dealt out together.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        claim: Claim,
        envs: Sequence[EnvRows],
        backlog: Backlog,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim = claim
        self._envs = envs
        self._backlog = backlog
        self._size = size
        self._clock = clock
        self._numbers = list(range(len(envs)))
        self._all_envs = np.arange(len(envs))
        self._is_storing = all(env.sender is not None for env in envs)
        self._newest: Decision | None = None
        """Every env's newest question, where that is the same one, in mid-episode."""
        self._next_steps: list[int] = []
        self._pile: list[Decision] = []
        """Answered questions before ``_newest`` whose rows are complete; the first is what envs
        still have as their row."""
        self._piled_at = 0.0

    def begin(self, question: Question, rows: Sequence[Row]) -> None:
        """A question was entered env by env; see whether the next one may follow it."""
        self._newest = None
        if question.envs != self._numbers or any(env.is_skipping for env in self._envs):
            return
        newest = rows[0].decision
        for place, row in enumerate(rows):
            if row.decision is not newest or row.place != place or row.is_last:
                return
        self._newest = newest
        self._next_steps = [step + 1 for step in question.steps]

    def follows(self, question: Question) -> bool:
        """True when a question is of all envs, one step after their newest one, with nothing to
        tell but how it went on.
        """
        return (
            self._newest is not None
            and self._newest.reply is not None
            and question.is_plain
            and question.steps == self._next_steps
            and question.envs == self._numbers
        )

    def add(self, question: Question) -> Decision:
        """Enter a question that follows; returns what is to be decided."""
        before = self._newest
        assert before is not None
        if not self._pile:
            self._piled_at = self._clock()
        self._pile.append(before)
        newest = Decision(
            ActRequest(
                self._claim.slot,
                self._claim.incarnation,
                self._all_envs,
                question.obs,
                question.is_first,
                explore=self._claim.explore,
            ),
            question.reward,
            question.terminated,
            question.truncated,
            question.rewards,
            may_end=False,
        )
        self._newest = newest
        if self._is_storing:
            self._backlog.rows += len(self._envs)
        self._next_steps = [step + 1 for step in question.steps]
        if len(self._pile) >= self._size:
            self.deal()
        return newest

    def deal(self) -> None:
        """Give every env its rows."""
        pile = self._pile
        newest = self._newest
        if not pile or newest is None:
            return
        self._pile = []
        if self._is_storing:
            self._backlog.rows -= len(pile) * len(self._envs)
        first_steps = [step - 1 - len(pile) for step in self._next_steps]
        for env in self._envs:
            env.commit()
        for first, last in _alike(pile, 1):
            self._deal_run(pile[first:last], [step + first for step in first_steps])
        for env in self._envs:
            env.follow([*pile[1:], newest])

    def end(self) -> None:
        """Deal out what there is; the next question is entered env by env."""
        self.deal()
        self._newest = None

    def _deal_run(self, run: Sequence[Decision], steps: Sequence[int]) -> None:
        """Rows that one version chose, the first of them at ``steps``."""
        if run[0].lost_carry:  # then it is alone
            for env, step in zip(self._envs, steps, strict=True):
                env.commit_one(run[0], step)
            return
        columns = {
            name: np.stack([decision.columns[name] for decision in run])
            for name in (run[0].columns if self._is_storing else ())
        }
        for env, step in zip(self._envs, steps, strict=True):
            rows = {name: value[:, env.number] for name, value in columns.items()}
            env.extend(rows, run, step, self._piled_at)


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
