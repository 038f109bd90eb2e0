"""Where a worker's actions come from: a policy in its own process, or a request to an inference
server. Needs no torch.

A row that is not live consumes no decision: its carry stays what it was, whatever the policy
computed beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from worldloom.core.exceptions import TrainingError
from worldloom.core.metrics import HistogramBuilder, Last, MetricMap, Sum
from worldloom.core.protocol import Carry, Policy
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.specs import ArraySpec
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.metrics.names import BATCH_BUCKETS, BUCKETS_S
from worldloom_dist.ports import WeightSource

__all__ = [
    "ActClient",
    "ActMeter",
    "ActReply",
    "ActRequest",
    "Actions",
    "LocalActing",
    "RemoteActing",
    "WeightPuller",
    "check_actions",
]

logger = logging.getLogger(__name__)

NO_ENVS = np.zeros(0, np.int64)


class Actions(NamedTuple):
    """One decision for every env: action per key ``[N, ...]``, extra columns ``[N, ...]``, and the
    weights that made it.

    ``carry_resets`` are the envs whose carry had been lost in mid-episode and started over.
    """

    action: Mapping[str, np.ndarray]
    extras: Mapping[str, np.ndarray]
    version: PolicyVersion
    carry_resets: Collection[int] = ()


def check_actions(choice: Actions, specs: Mapping[str, ArraySpec], num_envs: int) -> None:
    """Look at a policy's first decision: an agent from outside may be made for other actions.

    Args:
        choice: The decision.
        specs: Of the env's actions.
        num_envs: N.

    Raises:
        TrainingError: Names the action, what came, and what the env takes.
    """
    for key, spec in specs.items():
        want = f"{'int' if spec.is_discrete else 'float32'} of shape {(num_envs, *spec.shape)}"
        if spec.is_discrete:
            want += f", choices of {spec.num_classes} counted from 0"
        value = choice.action.get(key)
        if value is None:
            raise TrainingError(f"the policy gives no action {key!r}; the env takes {want}")
        is_kind = value.dtype.kind in ("iu" if spec.is_discrete else "f")
        if not is_kind or value.shape != (num_envs, *spec.shape):
            raise TrainingError(
                f"the policy's action {key!r} is {value.dtype} of shape {value.shape}, and the env "
                f"takes {want}; choose another agent, or mend its act()"
            )
        if spec.is_discrete:
            classes = np.reshape(spec.num_classes, spec.shape)
            if np.any(value < 0) or np.any(value >= classes):
                raise TrainingError(
                    f"the policy's action {key!r} is {value.tolist()}, and the env takes {want}"
                )


class ActClient(Protocol):
    """What a worker knows of its policy."""

    @property
    def version(self) -> PolicyVersion:
        """Weights that act now; ``NO_POLICY`` before the first ones arrived."""

    def refresh(self) -> None:
        """Fetch newer weights if it is time to look; called between two steps."""

    def act(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Actions:
        """Decide for all envs of the worker.

        Args:
            obs: Per key ``[N, ...]``.
            is_first: ``[N]`` bool.
            live: ``[N]`` bool; rows that are not live get an action that no one uses, and keep
                their carry.
        """

    def begin(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Callable[[], Actions]:
        """Ask as :meth:`act` does, but do not wait: the result does, when it is called. One
        question is open at a time.
        """

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""

    def state(self) -> dict[str, Any] | None:
        """Carry and random state for an exact resume, or None when they live elsewhere."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""


class WeightPuller:
    """Keeps a policy at the newest weights, by pulling.

    Args:
        policy: Whose weights.
        source: Where weights are found; None for a policy whose weights never change.
        interval_s: Look at most this often; 0 looks every time.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        policy: Policy,
        source: WeightSource | None,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._source = source
        self._interval_s = interval_s
        self._clock = clock
        self._next_s = -float("inf")
        self.version: PolicyVersion = NO_POLICY
        self._pulled = self._failed = 0
        self._seconds = 0.0
        self._fetched_in_s = 0.0
        self._bytes = 0
        self._times = HistogramBuilder(BUCKETS_S)

    def pull(self) -> None:
        """Load newer weights if it is time to look and there are any; after a failure the old ones
        stay.
        """
        newer = self.look()
        if newer is not None:
            self.load(newer)

    def look(self) -> WeightsSnapshot | None:
        """Newer weights, if it is time to look and there are any. Another thread than the one that
        decides may fetch them, for what ``load`` takes.
        """
        now = self._clock()
        if self._source is None or now < self._next_s:
            return None
        self._next_s = now + self._interval_s
        newer = None
        try:
            if self._source.version() > self.version:
                newer = self._source.fetch()
                self._bytes += newer.nbytes
        # whatever the transport raises: acting goes on with the old weights, and it is counted
        except Exception:
            self._note_failure()
        self._fetched_in_s = self._clock() - now
        self._seconds += self._fetched_in_s
        return newer

    def load(self, newer: WeightsSnapshot) -> None:
        """Act with these weights from now on; if they do not fit, the old ones stay."""
        now = self._clock()
        try:
            self._policy.load_weights(newer)
            self.version = newer.version
            self._pulled += 1
            self._times.add(self._fetched_in_s + self._clock() - now)
        except Exception:  # a policy may raise anything
            self._note_failure()
        self._seconds += self._clock() - now

    def _note_failure(self) -> None:
        self._failed += 1
        logger.warning(
            "weights could not be pulled; %s keeps acting",
            self.version,
            exc_info=self._failed == 1,
        )

    def drain_metrics(self) -> MetricMap:
        """Pulls, failures and seconds since the last call, and the version in use."""
        values: MetricMap = {
            "policy_version": Last(float(self.version.update)),
            "weights_pulled_total": Sum(self._pulled),
            "weights_pull_failures_total": Sum(self._failed),
            "actor_seconds_total{state=pull_weights}": Sum(self._seconds),
            "transfer_bytes_total{path=weights}": Sum(self._bytes),
            "weights_pull_seconds": self._times.take(),
        }
        self._pulled = 0
        self._failed = 0
        self._seconds = 0.0
        self._bytes = 0
        return values


class ActMeter:
    """Sizes and times of decisions; used by one thread."""

    def __init__(self) -> None:
        self._sizes = HistogramBuilder(BATCH_BUCKETS)
        self._times = HistogramBuilder(BUCKETS_S)

    def add(self, rows: int, seconds: float) -> None:
        """One decision for ``rows`` envs."""
        self._sizes.add(rows)
        self._times.add(seconds)

    def drain(self) -> MetricMap:
        """What happened since the last call."""
        return {
            "inference_batch_items": self._sizes.take(),
            "inference_seconds": self._times.take(),
        }


class LocalActing:
    """The policy lives in the worker's process, with the carries of its envs.

    Args:
        policy: Decides.
        num_envs: Rows of every call.
        source: Where weights are found; None when they never change.
        pull_interval_s: Look for newer weights at most this often.
        explore: False for evaluation.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        source: WeightSource | None = None,
        *,
        pull_interval_s: float = 1.0,
        explore: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._explore = explore
        self._carry: Carry = policy.initial_carry(num_envs)
        self._puller = WeightPuller(policy, source, pull_interval_s, clock)
        self._meter = ActMeter()
        self._clock = clock

    @property
    def version(self) -> PolicyVersion:
        """Weights that act now."""
        return self._puller.version

    def refresh(self) -> None:
        """Fetch newer weights if it is time to look."""
        self._puller.pull()

    def act(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Actions:
        """Decide for all envs (see :class:`ActClient`)."""
        started = self._clock()
        out = self._policy.act(obs, self._carry, is_first, explore=self._explore)
        self._meter.add(len(is_first), self._clock() - started)
        self._carry = (
            out.carry
            if live is None or False not in live.tolist()
            else _merge(self._carry, out.carry, live)
        )
        return Actions(out.action, out.extras, self.version)

    def begin(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Callable[[], Actions]:
        """The decision, not made yet: there is no other thread to make it meanwhile."""
        return partial(self.act, obs, is_first, live)

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        return {**self._puller.drain_metrics(), **self._meter.drain()}

    def state(self) -> dict[str, Any] | None:
        """Carry, random state; the weights are the checkpoint's own business."""
        return {"carry": dict(self._carry), "rng": self._policy.rng_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self._carry = dict(state["carry"])
        self._policy.load_rng_state(state["rng"])


@dataclass(frozen=True, slots=True)
class ActRequest:
    """Rows of one worker that need actions.

    Attributes:
        slot, incarnation: Which worker.
        envs: ``[n]`` int64 indices of its envs; with slot and incarnation they name the carries.
        obs: Per key ``[n, ...]``.
        is_first: ``[n]`` bool.
        explore: False asks for actions as evaluations choose them.
        executed: Where another action ran than the last one that was chosen: per action key
            ``[m, ...]``.
        executed_rows: ``[m]`` which of the ``n`` rows those are.

    One without rows asks for nothing but the version that acts, and is answered at once.
    """

    slot: int
    incarnation: int
    envs: np.ndarray
    obs: Mapping[str, np.ndarray]
    is_first: np.ndarray
    explore: bool = True
    executed: Mapping[str, np.ndarray] = field(default_factory=dict)
    executed_rows: np.ndarray = field(default_factory=lambda: NO_ENVS)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.envs)


@dataclass(frozen=True, slots=True)
class ActReply:
    """The answer to an :class:`ActRequest`, row by row.

    Attributes:
        action, extras: Per key ``[n, ...]``.
        version: Weights that decided.
        carry_reset: ``[n]`` bool; True where the server had no carry in the middle of an episode
            (it was restarted) and began with an empty one. ``is_first`` stays what it is.
        waited_s: Seconds from the request's arrival to its batch during which the server waited for
            more requests.
        busy_s: Seconds from the arrival during which the server was busy with the batch before.
        model_s: Seconds of the batch's policy call.
    """

    action: Mapping[str, np.ndarray]
    extras: Mapping[str, np.ndarray]
    version: PolicyVersion
    carry_reset: np.ndarray
    waited_s: float = 0.0
    busy_s: float = 0.0
    model_s: float = 0.0


@dataclass
class RemoteActing:
    """Asks an inference server; only live rows travel.

    Args:
        slot, incarnation: This worker.
        call: Reaches a server and waits for its answer; may raise when no server can be reached
            within its deadline.
        refresh_interval_s: Before the first weights, ask for the version that acts at most this
            often; None for never.
        clock: Monotonic seconds.
        submit: As ``call``, but returns at once with a function that waits for the answer; without
            it nothing overlaps.
        first_env: Index of the first env among the envs of the worker (a group of them may act by
            itself).
    """

    slot: int
    incarnation: int
    call: Callable[[ActRequest], ActReply]
    clock: Callable[[], float] = time.monotonic
    refresh_interval_s: float | None = None
    version: PolicyVersion = NO_POLICY
    submit: Callable[[ActRequest], Callable[[], ActReply]] | None = None
    first_env: int = 0
    _carry_resets: int = field(default=0, init=False)
    # envs for which the server has had a carry, so that one can be lost
    _known: set[int] = field(default_factory=set, init=False)
    _next_s: float = field(default=-float("inf"), init=False)

    def refresh(self) -> None:
        """Before the first weights: ask whether the server has some now."""
        now = self.clock()
        if (
            self.refresh_interval_s is not None
            and self.version == NO_POLICY
            and now >= self._next_s
        ):
            self._next_s = now + self.refresh_interval_s
            self.version = self.call(
                ActRequest(self.slot, self.incarnation, NO_ENVS, {}, np.zeros(0, bool))
            ).version

    def act(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Actions:
        """Decide for all live envs (see :class:`ActClient`)."""
        return self.begin(obs, is_first, live)()

    def begin(
        self, obs: Mapping[str, np.ndarray], is_first: np.ndarray, live: np.ndarray | None = None
    ) -> Callable[[], Actions]:
        """Send the request; the result waits for the answer."""
        total = len(is_first)
        if live is None or False not in live.tolist():
            envs = np.arange(total)
            rows = obs
        else:
            envs = np.flatnonzero(live)
            rows = {key: value[envs] for key, value in obs.items()}
            is_first = is_first[envs]
        request = ActRequest(self.slot, self.incarnation, envs + self.first_env, rows, is_first)
        answer = self.submit(request) if self.submit is not None else partial(self.call, request)
        return partial(self._finish, answer, envs, total)

    def _finish(self, answer: Callable[[], ActReply], envs: np.ndarray, total: int) -> Actions:
        reply = answer()
        self.version = reply.version
        resets = [env for env in envs[reply.carry_reset].tolist() if env in self._known]
        if resets:
            self._carry_resets += len(resets)
            names = ", ".join(str(env + self.first_env) for env in resets)
            logger.warning(
                "the inference server had lost the carries of envs %s in mid-episode", names
            )
        if len(self._known) < total:
            self._known.update(envs.tolist())
        if len(envs) == total:
            return Actions(reply.action, reply.extras, reply.version, resets)
        return Actions(
            _spread(reply.action, envs, total),
            _spread(reply.extras, envs, total),
            reply.version,
            resets,
        )

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        resets = self._carry_resets
        self._carry_resets = 0
        values: MetricMap = {"policy_version": Last(float(self.version.update))}
        return values | ({"carry_resets_total": Sum(resets)} if resets else {})

    def state(self) -> dict[str, Any] | None:
        """None: carries and random state live on the server."""
        return None

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def _merge(old: Carry, new: Carry, live: np.ndarray) -> Carry:
    """The new carry where live, the old one elsewhere. Indexing copies, so neither argument is
    written to.
    """
    awake = np.flatnonzero(live)
    every_row = np.arange(len(live))
    merged = {key: value[every_row] for key, value in old.items()}
    for key, value in merged.items():
        value[awake] = new[key][awake]
    return merged


def _spread(
    values: Mapping[str, np.ndarray], rows: np.ndarray, total: int
) -> dict[str, np.ndarray]:
    """Put ``[n, ...]`` at ``rows`` of ``[total, ...]``, zeros elsewhere."""
    result = {}
    for key, value in values.items():
        result[key] = np.zeros((total, *value.shape[1:]), value.dtype)
        result[key][rows] = value
    return result
