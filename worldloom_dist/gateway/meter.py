"""What a gateway counts; used by one thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from worldloom.core.metrics import HistogramBuilder, Last, MetricMap, Sum
from worldloom_client.wire import SOURCES
from worldloom_dist.metrics.names import BUCKETS_S

__all__ = ["GatewayMeter"]

NAME_OF = {number: name for name, number in SOURCES.items()}


class GatewayMeter:
    """Counts since the last drain, and totals for the summary.

    Args:
        action_repeat: Simulator steps of one decision.

    Attributes:
        questions, rows, skipped: Totals: questions answered, rows stored, rows left out.
    """

    def __init__(self, action_repeat: int = 1) -> None:
        self._action_repeat = action_repeat
        self.questions = 0
        self.rows = 0
        self.skipped = 0
        self._agent_steps = 0
        self._counts: Counter[str] = Counter()
        self._times = HistogramBuilder(BUCKETS_S)
        self._episodes: list[dict[str, Any]] = []

    @property
    def totals(self) -> dict[str, int]:
        """For the summary of a run."""
        return {"questions": self.questions, "rows": self.rows, "skipped_rows": self.skipped}

    def answered(self, seconds: float, *, is_held: bool) -> None:
        """One question took so long; ``is_held`` when its client was asked to wait."""
        self.questions += 1
        self._counts["gateway_questions_total"] += 1
        self._counts["gateway_held_total"] += is_held
        self._times.add(seconds)

    def refused(self, code: str) -> None:
        """A call was refused."""
        self._counts[f"gateway_refused_total{{code={code}}}"] += 1

    def stored(self, sources: Sequence[int]) -> None:
        """Rows were stored."""
        self.rows += len(sources)
        for number, rows in Counter(sources).items():
            self._counts[f"gateway_rows_total{{source={NAME_OF[number]}}}"] += rows

    def committed(self, agent_steps: int) -> None:
        """Rows are complete that are the results of this many decisions."""
        self._agent_steps += agent_steps

    def left_out(self, rows: int) -> None:
        """Rows stay out of replay because their client wants it."""
        self.skipped += rows
        self._counts["gateway_skipped_rows_total"] += rows

    def opened(self, *, is_resumed: bool) -> None:
        """A session begins."""
        kind = "resumed" if is_resumed else "new"
        self._counts[f"gateway_sessions_opened_total{{kind={kind}}}"] += 1

    def ended(self, reason: str) -> None:
        """A session is over: ``closed``, ``lease`` or ``fenced``."""
        self._counts[f"gateway_sessions_ended_total{{reason={reason}}}"] += 1

    def episode(self, episode_return: float, length: int, reason: str) -> None:
        """An episode ended."""
        self._episodes.append({"return": episode_return, "length": length, "reason": reason})

    def drain(self, sessions: int) -> tuple[MetricMap, dict[str, Any]]:
        """Metrics and facts since the last call."""
        if self._agent_steps:
            self._counts["agent_steps_total"] = self._agent_steps
            self._counts["env_steps_total"] = self._agent_steps * self._action_repeat
            self._agent_steps = 0
        values: MetricMap = {key: Sum(count) for key, count in self._counts.items()}
        values["gateway_sessions"] = Last(float(sessions))
        values["gateway_question_seconds"] = self._times.take()
        facts = {"episodes": self._episodes}
        self._counts = Counter()
        self._episodes = []
        return values, facts
