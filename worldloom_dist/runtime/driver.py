"""The roles of a run on Ray: starts them, keeps them up, reads their counters, and ends them in
order.

The driver is the control plane only; no row, batch or weight passes through it. When to evaluate,
what to write and whether the run is complete is decided by :class:`worldloom_dist.run.loop.Run`.

    start:  learner, coordinator, shards, weights, hub, inference, workers in waves
            -> (first update) evaluator -> (all workers) standby
    end:    workers (flush) -> learner (last version, checkpoint)
            -> last evaluation, of just those weights -> summary -> the rest
"""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from worldloom.core.exceptions import TrainingError, WorldLoomError
from worldloom.core.keys import load_key
from worldloom.core.metrics import Last, MetricMap, Sum
from worldloom_dist.gateway.building import KEY_FILE
from worldloom_dist.interfaces import (
    Coordinator,
    Evaluator,
    Gateway,
    Hub,
    Inference,
    Learner,
    Shard,
    WeightStore,
    coordinator_client,
)
from worldloom_dist.metrics.endpoint import read_secret
from worldloom_dist.metrics.otlp import otlp_variables
from worldloom_dist.metrics.process import NodeMeter
from worldloom_dist.ports import RowCounters
from worldloom_dist.replay.identity import known_incarnations
from worldloom_dist.rpc.actor_client import GONE, submit
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import (
    Plan,
    inference_question,
    known_inference,
    needs_measuring,
    place_inference,
)
from worldloom_dist.run.report import Report
from worldloom_dist.run.versions import build_facts
from worldloom_dist.runtime.cluster import store_used
from worldloom_dist.runtime.coordinator_role import CoordinatorRole
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.gateway_role import GatewayRole
from worldloom_dist.runtime.hub_role import HubRole
from worldloom_dist.runtime.learner_group import LearnerPlaces
from worldloom_dist.runtime.learner_roles import LearnerRole
from worldloom_dist.runtime.placement import Placement
from worldloom_dist.runtime.policy_roles import (
    EvaluatorRole,
    InferenceRole,
    begin_measuring,
    end_measuring,
)
from worldloom_dist.runtime.remote_evaluator import RemoteEvaluator
from worldloom_dist.runtime.reporting import Reporter
from worldloom_dist.runtime.server_watch import ServerWatch
from worldloom_dist.runtime.shard_role import ShardRole
from worldloom_dist.runtime.shutdown import Shutdown
from worldloom_dist.runtime.standby import StandbyKeeper
from worldloom_dist.runtime.supervisor import Role, Supervisor, start_actor
from worldloom_dist.runtime.weight_roles import WeightStoreRole
from worldloom_dist.runtime.worker_pool import WorkerPool

__all__ = ["RayRuntime"]

logger = logging.getLogger(__name__)

POLL_S = 0.25
LOOK_EVERY_S = 1.0
MACHINE_EVERY_S = 5.0
INCARNATIONS_PER_RUN = 1_000_000
"""Room for the incarnations of one driver's workers; the next driver of the run starts
above them.
"""


class RayRuntime:
    """The roles of one run on a connected Ray. Implements
    :class:`worldloom_dist.run.loop.Runtime`.

    Args:
        plan: What runs.
        folder: Where it writes.
        report: Its numbers.
        port: Of the Prometheus endpoint; 0 for none.
        watch: Over the servers of a cluster of our own.

    Raises:
        ConfigurationError: If the cluster is too small.
    """

    say_every_steps: int | None = None

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        report: Report,
        port: int,
        watch: ServerWatch | None = None,
    ) -> None:
        self._watch = watch
        if watch is not None:
            watch.on_hang = self._tell_of_servers
        self._plan = plan
        self._folder = folder
        self._port = port
        self._report = report
        self._ended: dict[int, int] = {}
        """Newest incarnation of every worker slot that has ended."""
        self._counters = folder.read_counters()
        self._final_counters = dict[str, dict[str, int]]()
        actors = plan.config.actors
        self.supervisor = Supervisor(
            max_restarts=actors.max_restarts, window_s=actors.restart_window_s
        )
        evaluated_at = int((report.evaluation or {}).get("env_steps", 0))
        self.evaluator = RemoteEvaluator(plan, self.supervisor, evaluated_at)
        self._coordinator = coordinator_client()
        self._reporter = Reporter("driver")
        self._node = NodeMeter(folder.path)
        self._look_due = Interval(LOOK_EVERY_S)
        self._measure = Interval(MACHINE_EVERY_S)
        self.num_windows: int | None = None
        self.is_restored = False
        self.worker_pool = WorkerPool(
            plan,
            self.supervisor,
            0,
            self._lost_open,
            on_down=self._worker_down,
            on_drained=self._note_drained,
        )
        self._standby = StandbyKeeper(
            self.supervisor,
            self._start_standby,
            is_wanted=plan.standby[0],
            checks_memory=plan.config.learner.standby == "auto",
        )
        self.shutdown = Shutdown(self.supervisor, self.worker_pool)
        earlier = folder.read_json("summary.json").get("inference")
        known = known_inference(plan, earlier) if needs_measuring(plan) else None
        if known is not None:
            self._plan = self.worker_pool.plan = replace(plan, measured_inference=known)
        is_open = known is None and needs_measuring(plan)
        self._measuring = begin_measuring(plan) if is_open else None
        if plan.config.address is not None:
            self._place_inference()  # on a cluster the other roles' places depend on it
        self._placement = Placement(plan.config, self._plan.inference)
        self.worker_pool.options = partial(self._placement.options, "worker")

    def start(self) -> None:
        """Start the roles; they come up while the run loop looks after them."""
        plan = self._plan
        add = self._add
        place = self._placement
        known = known_incarnations(self._folder.replay)
        newest_life = max(known.worker, known.gateway)
        self._folder.count_on_from(
            {
                "driver": newest_life // INCARNATIONS_PER_RUN + 1,
                "learner": max(known.learner, _incarnation_of(self._report.counts)),
            }
        )
        self.worker_pool.first_incarnation = (
            self._folder.next_incarnation("driver") - 1
        ) * INCARNATIONS_PER_RUN
        config = plan.config
        secret = read_secret(config.metrics_auth_file)
        where = (config.metrics_host, self._port, secret, self._folder.path)
        otlp = otlp_variables() if config.otel else None
        hub = (plan.run_id, plan.labels, build_facts(), *where, otlp)
        ranks = LearnerPlaces(plan.config, self._folder)
        for rank in range(plan.config.learners):
            make = partial(_start_learner, place, ranks, plan, self._folder, self._standby, rank)
            add(
                "learner",
                rank,
                Learner.run,
                make,
                ping_timeout_s=DEADLINES.ping_learner_s,
                group="learners",
            )
        add(
            "coordinator",
            0,
            Coordinator.run_forever,
            lambda _: _start(
                place,
                CoordinatorRole,
                "coordinator",
                0,
                plan,
                self._report.counts.positions,
                self._counters,
                self._report.counts.forgiven,
                self._report.counts.updates_lost,
                dict(self._ended),
            ),
            on_down=self._coordinator.forget,  # or a notice would go to the dead one
        )
        for index in range(plan.config.replay.shards):
            make = partial(_start_shard, place, plan, index, self._folder)
            tell = partial(self._coordinator.notify, Coordinator.shard_down, index)
            add("shard", index, Shard.run_forever, make, on_down=tell)
        add(
            "weights",
            0,
            WeightStore.run_forever,
            lambda _: _start(place, WeightStoreRole, "weights", 0),
        )
        make_hub = partial(_start, place, HubRole, "hub", 0, *hub, threads=8)
        add("hub", 0, Hub.run_forever, lambda _: make_hub(), is_vital=False)
        self._place_inference()  # the learner starts meanwhile
        plan = self._plan
        if plan.inference == "central":
            for index in range(plan.config.inference_servers):
                make = partial(_start_inference, place, plan, index)
                add("inference", index, Inference.run_forever, make)
        self._add_gateways()
        self.worker_pool.look()

    def _start_evaluator(self) -> None:
        """Once the learner trains, which needs the cores until then."""
        if not self._plan.config.eval_episodes or self.supervisor.of_kind("evaluator"):
            return
        make = partial(_start_evaluator, self._placement, self._plan, self._folder.path)
        self._add("evaluator", 0, Evaluator.run_forever, make, is_vital=False)

    def _start_standby(self, name: str) -> Any:
        options = self._placement.options("learner", 0)
        args = (self._plan, self._folder.path, 0)
        return start_actor(LearnerRole, name, *args, threads=4, options=options)

    def _add_gateways(self) -> None:
        config = self._plan.config
        if config.gateway_port is None:
            return
        key = load_key(self._folder.path / KEY_FILE)
        first = self.worker_pool.first_incarnation
        for index in range(config.gateways):
            make = partial(_start_gateway, self._placement, self._plan, index, first, key)
            self._add("gateway", index, Gateway.run_forever, make, is_vital=config.workers == 0)

    def _place_inference(self) -> None:
        """Decide where the policy runs, by what it was measured to cost; once."""
        if self._report.inference:
            return
        costs = end_measuring(self._measuring) if self._measuring is not None else None
        where, why = self._plan.measured_inference or place_inference(self._plan, costs)
        logger.info("inference: %s (%s)", where, why)
        question = inference_question(self._plan)
        self._report.inference = {"where": where, "why": why, "question": question}
        self._plan = self.worker_pool.plan = replace(self._plan, measured_inference=(where, why))

    def _add(
        self,
        kind: str,
        index: int,
        run_forever: Callable[[Any], Any],
        start: Callable[[int], Any],
        **more: Any,
    ) -> None:
        more["start_timeout_s"] = max(DEADLINES.start_s, self._plan.config.placement.wait_s)
        self.supervisor.add(Role(kind, index, start, run_forever=run_forever, **more))

    def work(self) -> bool:
        """Look after the roles for a moment; True when counters are due to be read.

        Raises:
            TrainingError: If a role that the run needs is given up, or Ray's own servers have died.
        """
        if self._watch is not None and self._watch.sentence:
            raise TrainingError(self._why_servers(self._watch.sentence))
        self.supervisor.poll(POLL_S)
        has_trained = bool(self._learner_status().get("train_steps", 0))
        self.worker_pool.leaves_core = not has_trained or self.owes_update
        self.worker_pool.look()
        self._standby.look(has_room=self.worker_pool.is_complete)
        if has_trained:
            self._start_evaluator()
        return self._look_due.is_due()

    @property
    def owes_update(self) -> bool:
        """True when stored steps ask for another update, as of the last look."""
        owes = self._report.counts.debt >= self._plan.limits.batch_positions
        return owes and self.num_windows != 0  # a shard that lost its rows may leave none to draw

    @property
    def shard_counters(self) -> Mapping[str, Mapping[str, int]]:
        """Row counters by shard: final ones where there are some."""
        return {**self._counters, **self._final_counters}

    def look(self) -> None:
        """Read the counters and tell the hub what only the driver knows."""
        self._look(DEADLINES.look_s)
        self.is_restored = self.is_restored or self._learner_status().get("state") == "training"

    def collect(self) -> None:
        """Nothing: roles send their metrics to the hub, and every look reads it."""

    def save_when_due(self) -> None:
        """Nothing: the learner writes checkpoints."""

    def end(self) -> None:
        """Workers send what is open and end, then the learner.

        Raises:
            TrainingError: If the learner wrote no last checkpoint.
        """
        if self._report.counts.train_steps:
            self._start_evaluator()
        self.end_inserts(DEADLINES.stop_workers_s)
        if not self._end_training(DEADLINES.stop_learner_s):
            raise TrainingError(
                "the learner did not write a last checkpoint; earlier ones are kept"
            )

    def rescue(self) -> None:
        """As :meth:`end`, in a shorter time, and each step whatever became of the one before;
        nothing where Ray's servers are dead, because no one would answer.
        """
        if self._watch is not None and self._watch.sentence:
            return
        for step in (
            partial(self.end_inserts, DEADLINES.stop_workers_failed_s),
            partial(self._end_training, DEADLINES.stop_learner_failed_s),
        ):
            try:
                step()
            except (RayError, WorldLoomError, ValueError) as error:
                logger.warning("while stopping: %s", error)

    def close(self) -> None:
        """Let the hub export what it heard last; the roles end with their Ray job. How the run
        ended is written: servers that go away from now on change nothing of it.
        """
        if self._watch is not None:
            self._watch.on_hang = lambda _: None
        is_ray_up = self._watch is None or not self._watch.sentence
        if self._plan.config.otel and is_ray_up:
            self._ask("hub-0", Hub.flush, DEADLINES.last_look_s)

    def _why_servers(self, sentence: str) -> str:
        return f"{sentence}; go on with --resume {shlex.quote(str(self._folder.path))}"

    def _tell_of_servers(self, sentence: str) -> None:
        """The run's thread hangs in a call of Ray: write in its place how the run ends."""
        error = f"TrainingError: {self._why_servers(sentence)}"
        self._folder.try_write_summary(self._report.summary("failed", error))

    def _look(self, timeout_s: float) -> None:
        """A role that does not answer leaves what it said last."""
        before = self._report.counts
        told = self._ask("coordinator-0", Coordinator.counts, timeout_s)
        if before.counters.agent_steps >= self._plan.target_agent_steps:
            self.supervisor.hear(("learner",))  # how much of what is owed is made by now
        status = self._learner_status()
        snapshot = self._ask("hub-0", Hub.snapshot, timeout_s) or self._report.snapshot
        self._note_reading()
        if told is not None and not told["is_whole"]:
            told = None  # one that was just started does not know the shards' counts yet
        if told is not None:
            self._counters = told["shards"]
            self.num_windows = told.get("windows")
        elif not self._final_counters:
            return
        counters = sum(
            (
                RowCounters(**counters)
                for counters in {**self._counters, **self._final_counters}.values()
            ),
            RowCounters(),
        )
        if counters.lost_acked > before.counters.lost_acked:
            gone = counters.lost_acked - before.counters.lost_acked
            logger.warning(
                "replay lost %d acknowledged rows, because a shard came back without "
                "them on its disk",
                gone,
            )
        positions = status.get("replayed_steps", before.positions)
        self._report.update(
            Counts(
                counters=counters,
                positions=positions,
                train_steps=status.get("train_steps", before.train_steps),
                policy_version=".".join(map(str, status["version"]))
                if "version" in status
                else before.policy_version,
                # one that is permitted and not made is still owed
                debt=told["debt"] + told["positions"] - positions if told else before.debt,
                forgiven=told["forgiven"] if told else before.forgiven,
                updates_lost=told["updates_lost"] if told else before.updates_lost,
                blocked_s=told["blocked_s"] if told else before.blocked_s,
                lost_open=before.lost_open,
                drained_workers=before.drained_workers,
                drained_rows=before.drained_rows,
                restarts=Counter(self.supervisor.restarts),
            ),
            snapshot,
        )
        self._report.quarantined = self.worker_pool.quarantined
        for role in self.supervisor.of_kind("shard"):
            self._report.left_out = {**self._report.left_out, **role.status.get("left_out", {})}
        self._report.gateway = self._gateway_counts()
        self._reporter.emit(
            {**self._report.gauges(), **self._report.increments(before), **self._machine()}
        )

    def _gateway_counts(self) -> dict[str, int]:
        """What gateways counted, those that died included, as hubs heard it."""
        if self._plan.config.gateway_port is None:
            return {}
        return {
            name: self._report.grown(f"gateway_{name}_total")
            for name in ("questions", "rows", "skipped_rows")
        }

    def _ask(self, name: str, method: Callable[[Any], Any], timeout_s: float) -> Any:
        """What a role says, or None when it is not there or does not answer."""
        role = self.supervisor.roles.get(name)
        if role is None or not role.is_up:
            return None
        try:
            return ray.get(submit(role.handle, method), timeout=timeout_s)
        except GONE as error:
            logger.warning(
                "no %s just now: %s did not answer (%s)",
                method.__name__,
                name,
                type(error).__name__,
            )
            return None

    def _machine(self) -> MetricMap:
        """Workers by state, and what is left of the machine."""
        alive = self.worker_pool.live
        dead = sum(role.is_given_up for role in self.worker_pool.workers)
        starting = self.worker_pool.wanted - alive - dead
        states = {"alive": alive, "starting": starting, "dead": dead}
        values: MetricMap = {
            f"workers{{state={state}}}": Last(count) for state, count in states.items()
        }
        values["workers_wanted"] = Last(self.worker_pool.wanted)
        return values | (
            self._node.drain() | {"object_store_used_bytes": Last(store_used())}
            if self._measure.is_due()
            else {}
        )

    def _learner_status(self) -> dict[str, Any]:
        return next((role.status for role in self.supervisor.of_kind("learner")), {})

    def end_inserts(self, timeout_s: float) -> None:
        """From now on the counters are what the shards themselves said last."""
        self._final_counters |= self.shutdown.end_inserts(timeout_s)
        self._look(timeout_s=DEADLINES.last_look_s)

    def _end_training(self, timeout_s: float) -> bool:
        """From now on the summary speaks of the learner's last checkpoint; False when there is
        none.
        """
        last = self.shutdown.end_training(timeout_s)
        if last is not None:
            self.supervisor.roles["learner-0"].status = last
        self._look(DEADLINES.look_s)
        return last is not None

    def _note_reading(self) -> None:
        """Name the shards that still read their journals."""
        reading = {
            role.name: role.status["reading"]
            for role in self.supervisor.of_kind("shard")
            if role.handle is not None and "reading" in role.status
        }
        self._report.reading = "; ".join(f"{name}: {text}" for name, text in reading.items())

    def _worker_down(self, slot: int, incarnation: int) -> None:
        self._ended[slot] = incarnation
        self._coordinator.notify(Coordinator.worker_down, slot, incarnation)

    def _note_drained(self, rows: int) -> None:
        counts = self._report.counts
        self._report.counts = replace(
            counts,
            drained_workers=counts.drained_workers + 1,
            drained_rows=counts.drained_rows + rows,
        )
        self._reporter.emit(
            {"workers_drained_total": Sum(1), "workers_drained_rows_total": Sum(rows)}
        )

    def _lost_open(self, rows: int) -> None:
        self._report.counts = replace(
            self._report.counts, lost_open=self._report.counts.lost_open + rows
        )


def _incarnation_of(counts: Counts) -> int:
    """Of the learner that made the newest weights the run knows of."""
    return int(counts.policy_version.partition(".")[0])


def _start(
    place: Placement, kind: type, role: str, index: int, *args: Any, threads: int = 0, **own: Any
) -> Any:
    options = {**place.options(role, index), **own}
    return start_actor(kind, f"{role}-{index}", *args, threads=threads, options=options)


def _start_shard(place: Placement, plan: Plan, index: int, folder: RunFolder, _: int) -> Any:
    return _start(place, ShardRole, "shard", index, plan, index, folder.replay)


def _start_gateway(
    place: Placement, plan: Plan, index: int, first: int, key: bytes, incarnation: int
) -> Any:
    return _start(place, GatewayRole, "gateway", index, plan, index, first + incarnation, key)


def _start_evaluator(place: Placement, plan: Plan, folder: Path, _: int) -> Any:
    return _start(place, EvaluatorRole, "evaluator", 0, plan, folder, threads=3)


def _start_inference(place: Placement, plan: Plan, index: int, incarnation: int) -> Any:
    return _start(place, InferenceRole, "inference", index, plan, index, incarnation)


def _start_learner(
    place: Placement,
    ranks: LearnerPlaces,
    plan: Plan,
    folder: RunFolder,
    standby: StandbyKeeper,
    rank: int,
    start: int,
) -> Any:
    """A new process, or the standby that takes its place."""
    own = ranks.options(rank, place.options("learner", rank))
    incarnation = ranks.incarnation(start)
    return standby.take(incarnation) or _start(
        place, LearnerRole, "learner", rank, plan, folder.path, incarnation, rank, threads=4, **own
    )
