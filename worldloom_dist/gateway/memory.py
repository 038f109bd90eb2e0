"""What a session remembers of its questions: decisions, the row that waits, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from worldloom.core.sequence import PolicyVersion
from worldloom_dist.actors.acting import ActReply, ActRequest

__all__ = ["Answer", "Decision", "Row"]


class Decision:
    """The rows of one question that were asked for the first time, and their answer.

    Args:
        request: What the policy is asked.
        reward, terminated, truncated: ``[n]`` of its rows.
        rewards: ``n`` plain values.
        may_end: False where no row ends its episode.

    Attributes:
        reply: None until the policy has answered.
        columns: Of its rows, once it has.
        lost_carry: The policy had lost what it knew of an env.
    """

    def __init__(
        self,
        request: ActRequest,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        rewards: Sequence[float],
        *,
        may_end: bool,
    ) -> None:
        self.request = request
        self.may_end = may_end
        self.rewards = rewards
        self.flags = {
            "reward": reward,
            "is_first": request.is_first,
            "terminated": terminated,
            "truncated": truncated,
        }
        self.reply: ActReply | None = None
        self.columns: dict[str, np.ndarray] = {}
        self.lost_carry = False
        self.task: asyncio.Task[None] | None = None
        self.waiting: list[asyncio.Future[None]] = []


@dataclass(slots=True)
class Row:
    """The newest question of an env."""

    step: int
    decision: Decision
    place: int
    is_first: bool
    is_last: bool
    is_stored: bool = False
    """Handed on to replay, or none of its."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one question, row by row.

    Attributes:
        action: Per key ``[n, ...]``.
        version: Weights that decided; of several the oldest.
        carry_reset: ``[n]`` bool.
        stored: ``n`` numbers: steps before them are stored, or left out.
        hold_s: How long replay wants no more rows; 0 for not at all.
        queue_s, model_s: Where the time went.
    """

    action: Mapping[str, np.ndarray]
    version: PolicyVersion
    carry_reset: np.ndarray
    stored: list[int] = field(default_factory=list)
    hold_s: float = 0.0
    queue_s: float = 0.0
    model_s: float = 0.0
