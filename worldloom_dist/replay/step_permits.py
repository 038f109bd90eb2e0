"""Which agent steps workers have in hand: permitted to them, or made and not stored yet.

A worker asks before its envs act, so that what 64 workers hold in open chunks is bound by the
train ratio, and ends where the run does. Its question says what it has made in all, and what of
that is in chunks which are not acknowledged; a coordinator that was started again learns all it
needs from that.

    in hand = made + permitted - arrived        per incarnation of a worker
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worldloom.data.rate_limiter import RateLimiter
from worldloom_dist.ports import StepQuestion

__all__ = ["StepPermits"]

SHARES_PER_WORKER = 2
"""A permit is at most this part of a worker's equal share of what may be made: what one has in hand
the others cannot make."""


@dataclass(slots=True)
class _Account:
    """One worker: the steps that its incarnation may have made, and those that have arrived at a
    shard.
    """

    incarnation: int
    permitted: int = 0
    arrived: int = 0
    is_exact: bool = True

    @property
    def in_hand(self) -> int:
        return max(0, self.permitted - self.arrived)


class StepPermits:
    """Permits steps to workers, and counts what they have in hand in ``limiter.steps_in_hand``.

    Args:
        limiter: Of the run.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._accounts: dict[int, _Account] = {}
        self._ended: dict[int, int] = {}

    def ask(self, question: StepQuestion, *, target: int, is_bound: bool) -> int:
        """Permit a worker its next steps.

        Args:
            question: Of the worker.
            target: Agent steps of the whole run; the last permit may pass it by less than one
                decision of the worker's envs.
            is_bound: False while the train ratio does not count, because nothing can be sampled.

        Returns:
            Agent steps: at least ``question.least``, or 0 when it has to wait.
        """
        account = self._account(question)
        if account is None:
            return 0
        self._set(account, permitted=question.made)
        left = target - self._limiter.steps_made
        if left <= 0:
            return 0
        steps = min(self._share(question) if is_bound else question.most, question.most)
        if steps < question.least:
            at_most = self._limiter.limits.max_insert_steps
            if is_bound and not self._limiter.may_insert(min(question.least, at_most)):
                return 0
            steps = question.least
        # whole decisions only, and no more of them than the run still needs
        decisions = min(steps // question.least, -(-left // question.least))
        steps = decisions * question.least
        self._set(account, permitted=question.made + steps)
        return steps

    def arrived(self, slot: int, incarnation: int, steps: int) -> None:
        """A chunk of a worker was admitted: its steps count as inserted from now on."""
        account = self._accounts.get(slot)
        if account is not None and account.incarnation == incarnation:
            self._set(account, arrived=account.arrived + steps)

    def doubt(self, is_concerned: Callable[[int], bool]) -> None:
        """A shard was started again: chunks that had arrived there may come once more. Workers know
        better, and say so when they ask next.

        Args:
            is_concerned: True for the slots that send their chunks there.
        """
        for slot, account in self._accounts.items():
            account.is_exact = account.is_exact and not is_concerned(slot)

    def gone(self, slot: int, incarnation: int) -> None:
        """A worker has ended: what it had in hand will not come."""
        self._ended[slot] = max(incarnation, self._ended.get(slot, incarnation))
        account = self._accounts.get(slot)
        if account is not None and account.incarnation <= incarnation:
            self._close(slot, account)

    def _close(self, slot: int, account: _Account) -> None:
        self._set(account, permitted=account.arrived)
        del self._accounts[slot]

    def _account(self, question: StepQuestion) -> _Account | None:
        """The worker's account as its question says it; None for one that has ended, or has a
        successor.
        """
        slot, incarnation, _, made, in_chunks, *_ = question
        account = self._accounts.get(slot)
        if incarnation <= self._ended.get(slot, -1):
            return None
        if account is not None and account.incarnation > incarnation:
            return None
        if account is None or account.incarnation < incarnation:
            if account is not None:
                self._close(slot, account)
            account = self._accounts[slot] = _Account(incarnation, is_exact=False)
        # a chunk that arrived and is not acknowledged yet would count twice otherwise
        if in_chunks == 0 or not account.is_exact:
            self._set(account, arrived=made - in_chunks)
            account.is_exact = True
        return account

    def _share(self, question: StepQuestion) -> int:
        share = self._limiter.room() // (SHARES_PER_WORKER * len(self._accounts))
        return share - share % question.least

    def _set(
        self, account: _Account, *, permitted: int | None = None, arrived: int | None = None
    ) -> None:
        before = account.in_hand
        account.permitted = account.permitted if permitted is None else permitted
        account.arrived = account.arrived if arrived is None else arrived
        self._limiter.steps_in_hand += account.in_hand - before
