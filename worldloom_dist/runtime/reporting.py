"""How a role on Ray tells the hub what it measured. Never waits, never raises: a hub that is away
misses a flush, no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from worldloom.core.metrics import MetricMap, Sum
from worldloom_dist.interfaces import Hub, hub_client
from worldloom_dist.metrics.process import ProcessMeter
from worldloom_dist.rpc.actor_client import drain_errors

__all__ = ["FLUSH_EVERY_S", "Reporter", "flush_interval_s", "with_planner"]

FLUSH_EVERY_S = 2.0
BEAT_AFTER_S = 8.0
FLUSHES_PER_S = 12.0
"""Flushes that the hub takes from all workers together; with more workers each of them sends less
often.
"""


def flush_interval_s(workers: int) -> float:
    """How often each of this many workers sends its metrics."""
    return max(FLUSH_EVERY_S, workers / FLUSHES_PER_S)


def with_planner(values: MetricMap, acting: str) -> MetricMap:
    """Times of decisions under a name of their own where an agent plans (``AgentSpec.acting`` is
    ``planner``).
    """
    times = values.get("inference_seconds")
    return (
        {**values, "planner_seconds": times}
        if acting == "planner" and times is not None
        else values
    )


class Reporter:
    """Sends metrics of one role instance, and with them what every process has: memory, CPU, failed
    calls.

    Args:
        role: ``role`` label of the series.
        index: Which instance.
    """

    def __init__(self, role: str, index: int = 0) -> None:
        self._role = role
        self._index = index
        self._hub = hub_client()
        self._meter = ProcessMeter()
        self._said_at = time.monotonic()

    def emit(self, values: MetricMap | None = None, facts: Mapping[str, Any] | None = None) -> None:
        """Hand over what happened since the last call."""
        self._said_at = time.monotonic()
        errors = {
            f"rpc_errors_total{{reason={reason}}}": Sum(count)
            for reason, count in drain_errors().items()
        }
        self._hub.notify(
            Hub.emit,
            self._role,
            self._index,
            {**(values or {}), **errors, **self._meter.drain()},
            facts,
        )

    def beat(self) -> None:
        """A heartbeat from another thread, when the one that measures has been waiting
        for long.
        """
        if time.monotonic() - self._said_at > BEAT_AFTER_S:
            self._said_at = time.monotonic()
            self._hub.notify(Hub.emit, self._role, self._index, {}, None)

    async def emit_for_ever(self) -> None:
        """For roles that have nothing else to say: memory, CPU and a heartbeat, for as long as
        the process lasts.
        """
        while True:
            self.emit()
            await asyncio.sleep(FLUSH_EVERY_S)
