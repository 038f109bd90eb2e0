"""The train ratio as a two-sided limit, in the only units that count: agent steps inserted and
positions trained.

    debt(I) = train_ratio * max(0, I - prefill) + pretraining * (I >= prefill)
              - max(0, S - offline) - forgiven

I: agent steps inserted. M: steps made, those inserted and those that workers have in hand
(permitted to them, or in a chunk that is not stored yet). S: positions sampled for training. debt:
positions owed to training, negative when training is ahead.

    may make c more steps  when M < prefill, or debt(M + c) is at most ``slack_insert``
    may sample P positions when I >= prefill, and debt(I) - P is at least ``-slack_sample``

So a step counts for its worker when it is permitted, before it is made, and for training when it is
stored: neither side runs ahead of what there is. Updates on data from files may come before the
first step (offline, in positions): until they are made, samples are admitted whatever the ratio
says and steps are not, and nothing is owed for them. Invariants, for permits of at most c steps and
samples of at most P positions, while no learner falls back:

* once the prefill is complete, ``-slack_sample <= debt(I) <= debt(M) <= max(slack_insert,
  pretraining + train_ratio * c)``; the second bound is the pretraining, which blocks inserts until
  it is paid, as in the published schedules that pretrain when the prefill is complete;
* at least one side may always proceed once what is in hand is stored (I = M). Before the prefill it
  is the insert. After it, both sides would wait only if ``slack_insert - train_ratio * c < debt <
  P - slack_sample``, and the constructor refuses settings that leave such a gap.

A learner that dies takes updates with it: S falls back to its checkpoint's, and the debt rises by
as much. It is owed like any other: nothing is made until training has caught up.
:meth:`RateLimiter.clamp_debt` alone forgives, for a run that goes on with other settings.

Counts are exact: the ratio is kept as the fraction of its decimal text, and sums are integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from worldloom.core.exceptions import ConfigurationError

__all__ = ["RateLimiter", "RateLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Settings of a :class:`RateLimiter`.

    Args:
        train_ratio: Trained positions per agent step, > 0.
        prefill_agent_steps: Steps before the first update; not owed to training.
        batch_positions: Positions of one update (``SamplingSpec.trained_positions``).
        pretrain_updates: Updates owed at once when the prefill is complete.
        max_insert_steps: The most steps that one insert brings (rows of a chunk).
        band_agent_steps: How far the two sides may drift apart, as agent steps; None takes twice
            what is needed.
        lead_share: Part of the band in which training may be ahead; 0 means never ahead, as
            lock-step needs it.
        offline_updates: Updates on data from files before the first step; not owed.

    Raises:
        ConfigurationError: If a value is out of range, or the band is so narrow that both sides
            could wait for ever.
    """

    train_ratio: float
    prefill_agent_steps: int
    batch_positions: int
    pretrain_updates: int = 0
    max_insert_steps: int = 64
    band_agent_steps: int | None = None
    lead_share: float = 0.5
    offline_updates: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.train_ratio < float("inf"):
            raise ConfigurationError(
                f"train_ratio must be a finite number > 0, got {self.train_ratio}"
            )
        small = min(self.prefill_agent_steps, self.pretrain_updates, self.offline_updates)
        if (
            small < 0
            or min(self.batch_positions, self.max_insert_steps) < 1
            or not 0 <= self.lead_share <= 1
        ):
            raise ConfigurationError(
                "rate limits need prefill_agent_steps, pretrain_updates and offline_updates >= 0, "
                "batch_positions and max_insert_steps >= 1, "
                f"lead_share in [0, 1]; got {self}"
            )
        if self.band_agent_steps is not None and self.band_positions < self.needed_positions:
            raise ConfigurationError(
                f"band_agent_steps={self.band_agent_steps} could block inserts and "
                "samples at once: train_ratio * band_agent_steps "
                f"= {float(self.band_positions):g} positions must be >= "
                "batch_positions + train_ratio * max_insert_steps = "
                f"{self.batch_positions} + {self.train_ratio:g} * "
                f"{self.max_insert_steps} = {float(self.needed_positions):g}; "
                f"widen the band to {-(-self.needed_positions // self.ratio)} agent steps"
            )

    @property
    def ratio(self) -> Fraction:
        """``train_ratio`` without binary rounding."""
        return Fraction(repr(float(self.train_ratio)))

    @property
    def needed_positions(self) -> Fraction:
        """The narrowest band, in positions, that never blocks both sides."""
        return self.batch_positions + self.ratio * self.max_insert_steps

    @property
    def band_positions(self) -> Fraction:
        """Width of the band in positions."""
        return (
            2 * self.needed_positions
            if self.band_agent_steps is None
            else self.ratio * self.band_agent_steps
        )

    @property
    def slack_sample(self) -> Fraction:
        """Positions by which training may be ahead."""
        return self.band_positions * Fraction(repr(float(self.lead_share)))

    @property
    def slack_insert(self) -> Fraction:
        """Positions by which training may be behind before inserts wait."""
        return self.band_positions - self.slack_sample

    @property
    def pretrain_positions(self) -> int:
        """Positions owed at once when the prefill is complete."""
        return self.pretrain_updates * self.batch_positions

    @property
    def offline_positions(self) -> int:
        """Positions sampled before the first step."""
        return self.offline_updates * self.batch_positions

    @property
    def unowed_positions(self) -> int:
        """Positions that no step beyond the prefill owes."""
        return self.offline_positions + self.pretrain_positions


class RateLimiter:
    """Counts both sides and says who may proceed; see the module for formula and invariants. Holds
    no lock and never waits.

    Example::

        limits = RateLimits(train_ratio=768, prefill_agent_steps=500, batch_positions=768)
        limiter = RateLimiter(limits)
        if limiter.may_insert(64):
            limiter.inserted(64)

    Args:
        limits: The settings.

    Attributes:
        agent_steps, positions: Inserted, and sampled for training, so far.
        steps_in_hand: Agent steps that workers may make, or have made, and that are not inserted.
        forgiven: Positions that are not owed any more.
    """

    def __init__(self, limits: RateLimits) -> None:
        self.limits = limits
        self.agent_steps = 0
        self.steps_in_hand = 0
        self.positions = 0
        self.forgiven = Fraction(0)
        self._ratio = limits.ratio
        self._slack_insert = limits.slack_insert
        self._slack_sample = limits.slack_sample
        self._offline = limits.offline_positions

    @property
    def debt(self) -> Fraction:
        """Positions owed to training now, exact; meaningful once the prefill is complete."""
        return self._debt(self.agent_steps)

    @property
    def is_offline(self) -> bool:
        """True while updates on data from files come before the first step."""
        return self.positions < self._offline

    @property
    def is_prefilled(self) -> bool:
        """True when sampling may begin."""
        return self.agent_steps >= self.limits.prefill_agent_steps

    @property
    def steps_made(self) -> int:
        """Agent steps inserted, and those that workers have in hand."""
        return self.agent_steps + self.steps_in_hand

    def may_insert(self, agent_steps: int) -> bool:
        """True when ``agent_steps`` more may be made, or inserted, now."""
        made = self.steps_made
        return not self.is_offline and (
            made < self.limits.prefill_agent_steps
            or self._debt(made + agent_steps) <= self._slack_insert
        )

    def room(self) -> int:
        """The most agent steps that may be made now; 0 when none may."""
        if self.is_offline:
            return 0
        missing = self.limits.prefill_agent_steps - self.steps_made
        allowed = self._slack_insert + self._counted + self.forgiven
        allowed -= self.limits.pretrain_positions
        return max(0, missing, missing + math.floor(allowed / self._ratio))

    def may_sample(self, positions: int) -> bool:
        """True when ``positions`` positions may be sampled now."""
        if self.is_offline:
            return True
        return self.is_prefilled and self._debt(self.agent_steps) - positions >= -self._slack_sample

    def insert_waits_for(self, agent_steps: int) -> int:
        """Positions that must be sampled before ``agent_steps`` more may be inserted; 0 when they
        may be now.
        """
        if self.may_insert(agent_steps):
            return 0
        if self.is_offline:
            return self._offline - self.positions
        return math.ceil(self._debt(self.steps_made + agent_steps) - self._slack_insert)

    def sample_waits_for(self, positions: int) -> int:
        """Agent steps that must be inserted before ``positions`` positions may be sampled; 0 when
        they may be now.
        """
        if self.may_sample(positions):
            return 0
        prefill = max(self.agent_steps, self.limits.prefill_agent_steps)
        short = positions - self._slack_sample - self._debt(prefill)
        return prefill - self.agent_steps + math.ceil(max(Fraction(0), short) / self._ratio)

    @property
    def actual_ratio(self) -> float:
        """Trained positions per agent step so far, prefill, pretraining and offline updates left
        out; NaN before the prefill is complete.
        """
        beyond = self.agent_steps - self.limits.prefill_agent_steps
        return (
            (self.positions - min(self.positions, self.limits.unowed_positions)) / beyond
            if beyond > 0
            else math.nan
        )

    def inserted(self, agent_steps: int) -> None:
        """Count agent steps that were inserted (negative to take back a reservation that was not
        used).
        """
        self.agent_steps += agent_steps

    def sampled(self, positions: int) -> None:
        """Count positions that were sampled (negative to take back)."""
        self.positions += positions

    def updates_due(self, agent_steps: int) -> int:
        """Updates that should have happened, over the whole run, by the time ``agent_steps`` steps
        are inserted.
        """
        owed = (self._owed(agent_steps) - self.forgiven) // self.limits.batch_positions
        return self.limits.offline_updates + max(0, int(owed))

    def rebase(self, agent_steps: int, positions: int) -> None:
        """Take over the counts of a run that goes on. What was forgiven before stays so, and
        nothing else is.
        """
        self.agent_steps = agent_steps
        self.positions = positions

    def clamp_debt(self) -> None:
        """Forgive the part of the debt (or lead) that lies outside the band: a run that goes on
        with another ratio, prefill or batch owes what these ask for from now on.
        """
        debt = self._debt(self.agent_steps)
        highest = self._slack_insert
        unpaid = self.limits.pretrain_positions - self._counted
        if self.is_prefilled and unpaid > 0:
            highest = max(highest, unpaid + self._ratio * self.limits.max_insert_steps)
        self.forgiven += debt - min(max(debt, -self._slack_sample), highest)

    def state(self) -> dict[str, int]:
        """Counts as JSON integers, for a checkpoint."""
        top, bottom = self.forgiven.as_integer_ratio()
        return {
            "agent_steps": self.agent_steps,
            "positions": self.positions,
            "forgiven_numerator": top,
            "forgiven_denominator": bottom,
        }

    def load(self, state: Mapping[str, int]) -> None:
        """Inverse of :meth:`state`."""
        self.agent_steps = state["agent_steps"]
        self.positions = state["positions"]
        self.forgiven = Fraction(state["forgiven_numerator"], state["forgiven_denominator"])

    def _owed(self, agent_steps: int) -> Fraction:
        beyond = agent_steps - self.limits.prefill_agent_steps
        return Fraction(0) if beyond < 0 else self._ratio * beyond + self.limits.pretrain_positions

    @property
    def _counted(self) -> int:
        """Positions sampled behind the offline updates."""
        return max(0, self.positions - self._offline)

    def _debt(self, agent_steps: int) -> Fraction:
        return self._owed(agent_steps) - self._counted - self.forgiven
