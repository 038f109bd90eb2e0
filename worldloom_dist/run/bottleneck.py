"""Which resource binds a run, by how much, and what to change: from where learner and workers spend
their seconds.

learner    the training thread computes nearly all the time; workers wait for the train ratio
sampling   the learner waits for batches that the train ratio owes it: replay or network is slow
inference  the learner waits for steps, and workers spend most of their time waiting for actions
envs       the learner waits for steps, and workers spend most of their time in the envs
limiter    both wait by turns: the band of the train ratio is narrow
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["UNKNOWN", "Bottleneck", "Use", "diagnose"]

UNKNOWN = "unknown"
BUSY = 0.9
SLIGHT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Where time went in some stretch of a run.

    Attributes:
        seconds: Its length.
        learner: Seconds of the training thread by phase (``learner_seconds_total``), over all
            ranks.
        actors: Seconds of the env workers by state (``actor_seconds_total``).
        samples_refused: Seconds for which nothing was owed to training.
        workers: Env workers; none where clients of a gateway play alone.
        has_gpu: True when the learner trains on a GPU, as far as is known.
    """

    seconds: float
    learner: Mapping[str, float]
    actors: Mapping[str, float]
    samples_refused: float
    workers: int
    has_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The answer.

    Attributes:
        resource: As in the module, or ``unknown`` before anything was trained.
        share: How much of its time that resource is busy (or holds the others up), 0 to 1.
        advice: What to change, one sentence.
    """

    resource: str
    share: float
    advice: str

    def __str__(self) -> str:
        return f"{self.resource}-bound at {self.share:.0%}: {self.advice}"


def diagnose(use: Use) -> Bottleneck:
    """Say what binds."""
    total = sum(use.learner.values())
    acting = sum(use.actors.values())
    if not total or use.seconds <= 0:
        return Bottleneck(UNKNOWN, 0.0, "not measured yet")
    waiting = use.learner.get("wait_data", 0.0) / total
    busy = 1.0 - waiting
    blocked = use.actors.get("blocked", 0.0) / acting if acting else 0.0
    if busy >= BUSY:
        return Bottleneck("learner", busy, _for_learner(use, blocked))
    refused = min(1.0, use.samples_refused / use.seconds)
    if refused < waiting / 2:
        return Bottleneck(
            "sampling",
            waiting,
            "batches are owed and come late; add --replay.shards, or raise --learner.prefetch",
        )
    if blocked > SLIGHT:
        return Bottleneck(
            "limiter",
            blocked,
            "learner and workers wait for each other by turns; widen --replay.band-steps",
        )
    wanted = math.ceil(use.workers / max(busy, 0.01))
    inference = use.actors.get("inference", 0.0)
    if acting and inference > use.actors.get("env", 0.0):
        return Bottleneck(
            "inference",
            inference / acting,
            "workers wait for actions; add --inference-servers, or put them on a GPU",
        )
    share = use.actors.get("env", 0.0) / acting if acting else waiting
    more = (
        f"about {wanted} --workers would keep it busy"
        if use.workers
        else "it has no workers: more clients of the gateway, or --workers, would keep it busy"
    )
    return Bottleneck("envs", share, f"the learner is busy {busy:.0%} of the time; {more}")


def _for_learner(use: Use, blocked: float) -> str:
    enough = max(1, math.ceil(use.workers * (1.0 - blocked)))
    spare = f"{enough} of {use.workers} workers would suffice; " if enough < use.workers else ""
    more = "more --learners" if use.has_gpu else "a GPU"
    return f"{spare}a smaller --agent, a lower --train-ratio or {more} makes it faster"
