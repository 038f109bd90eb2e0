"""All roles of a run in one process, in lock-step: the same classes as on Ray, in a fixed order, so
that a seed fixes everything.

    first:     the updates of ``--offline-steps``, on rows from files
    for ever:  every worker makes one decision per env  ->  chunks that closed are stored
               ->  every update that is now due is made  ->  new weights are published

Steps make updates due when their chunk is stored. So with ``actors.chunk_rows`` of 64 as many
decisions are made with weights of before, and then as many updates; with 1 the updates of a
decision come before the next.

The version that acts is a function of the row count. A checkpoint is one cut through all roles:
open chunks are flushed, replay takes a snapshot, and envs that can be saved are saved; those that
cannot begin new episodes there, in a run that was never interrupted too. So a resumed run equals an
uninterrupted one, bit for bit on a CPU. Does not need Ray.

A run that fails outside of training, for example in an evaluation, writes a checkpoint before it
ends; of several tasks one whose env fails there costs the evaluation only. A worker whose envs are
all in quarantine is left out while ``actors.min_live`` others go on; a resumed run tries it again.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from worldloom.core.damage import reading
from worldloom.core.exceptions import (
    BufferError,
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    StateError,
    TrainingError,
)
from worldloom.core.memory import tree_of
from worldloom.core.protocol import Agent
from worldloom.data.selector_spec import parse_selector
from worldloom.data.windows import SampledWindows
from worldloom.envs.memory import LOOK_EVERY_S, MemoryWatch
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.learner.prediction_videos import PredictionVideos
from worldloom_dist.learner.step import CaptureFailedError, prepare_torch
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.lockstep.evaluator import LocalEvaluator
from worldloom_dist.lockstep.gateway import LocalGateway
from worldloom_dist.lockstep.workers import LocalWorkers
from worldloom_dist.metrics.endpoint import read_secret, serve_near
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.otlp import OtlpExport
from worldloom_dist.metrics.process import NodeMeter, ProcessMeter
from worldloom_dist.page.app import PageApp
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.replay.imports import ImportList, split_sources
from worldloom_dist.replay.meter import drawn_metrics, priority_metrics
from worldloom_dist.replay.planning import files_to_store
from worldloom_dist.replay.snapshots import ShardSnapshot
from worldloom_dist.run.builders import (
    build_learner,
    build_shard,
    build_store,
    check_live,
    check_none,
    check_trained_env,
    trained_facts,
)
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.initial_agent import begin_with
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import Plan, role_seed
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag
from worldloom_dist.run.versions import build_facts

__all__ = ["LocalRuntime"]

logger = logging.getLogger(__name__)
LACKS = "cannot be gone on from, a part is missing or of another kind"

SAY_EVERY_STEPS = 500
LAST_REPORT_S = 10.0
OFFLINE_UPDATES_PER_ROUND = 100
"""While nothing acts a round is this number of updates."""
OFFLINE_UPDATES_PER_CHECKPOINT = 2000
"""Checkpoints are counted in env steps, and no env steps are made in the meantime."""
TRAIN_FOR_S = 5.0
"""A round that owes many updates returns to the run loop in between."""
WAIT_FOR_CLIENTS_S = 0.02
"""How long a round without workers waits for a question of a client."""


SMALL_BYTES = 8e6
"""Of weights: an agent with fewer is trained by one thread unless told otherwise. Its products are
so short that a second thread costs more than it does (tdmpc2:ci on two idle cores: half the rate).
"""
MEMORY_SHARE = 0.75
"""Of all memory that this process may hold with its envs when memory is short; replay plans with
half of it.
"""


class LocalRuntime:
    """The roles of one run in this process. Implements :class:`worldloom_dist.run.loop.Runtime`.

    Args:
        plan: What runs.
        folder: Where it writes; of a run that goes on nothing in it changes before the run is
            restored.
        report: Its numbers.
        port: Of the Prometheus endpoint; 0 for none.
        stop: Ends training between two updates, and an evaluation at once.

    Raises:
        CheckpointError: If there are checkpoints, and none of them can be read.
    """

    say_every_steps: int | None = SAY_EVERY_STEPS
    shard_counters: Mapping[str, Mapping[str, int]] = {}

    def __init__(
        self, plan: Plan, folder: RunFolder, report: Report, port: int, stop: StopFlag
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._report = report
        self._stop = stop
        own = plan.config.learner
        device = "cpu" if own.device == "auto" else own.device
        prepare_torch(
            device,
            threads=own.threads or torch.get_num_threads(),
            tf32=own.tf32,
            deterministic=own.deterministic,
        )
        self.hub = MetricsHub(plan.run_id, plan.labels, build_facts())
        secret = read_secret(plan.config.metrics_auth_file)
        self.endpoint, _ = serve_near(
            self.hub, plan.config.metrics_host, port, secret, PageApp(folder.path)
        )
        self._otlp = OtlpExport(self.hub, plan.run_id) if plan.config.otel else None
        self.weights = WeightStore()
        self._store = build_store(plan, folder.path)
        self._found = self._store.newest()
        if self._found is None:
            check_none(self._store)
            if folder.replay.exists():
                logger.info("there is no checkpoint yet: the run begins again, without its rows")
            shutil.rmtree(folder.replay, ignore_errors=True)
        shards = [
            build_shard(plan, index, folder.replay) for index in range(plan.config.replay.shards)
        ]
        self.replay = DirectReplay(
            shards,
            ReplayCoordinator(
                plan.limits,
                window_positions=plan.spec.sampling.length,
                share=plan.offline_share,
            ),
            is_lockstep=True,
        )
        self.learner = build_learner(
            plan, self.weights, device=device, incarnation=1, folder=folder.path
        )
        if own.threads is None and device == "cpu" and _is_small(self.learner.agent):
            torch.set_num_threads(1)
        self.learner.write_back = self.replay.write_back
        if parse_selector(plan.config.replay.selector).uses_priorities:
            self.learner.update_priorities = self.replay.update_priorities
        self.prediction_videos = PredictionVideos(
            folder.videos, plan.config.learner.report_every_steps, report.env_steps
        )
        self.workers = LocalWorkers(plan, self.weights, self.replay, device)
        self.evaluator = LocalEvaluator(
            plan, folder, self.weights, stop, self._note_score, device, self.learner.agent
        )
        self.gateway: LocalGateway | None = None
        self._node = NodeMeter(folder.path)
        self._process = ProcessMeter()
        self._reported = report.counts
        self._checkpoint_at = 0
        self._saved_updates = 0
        self._was_offline = False
        self._newest: tuple[int, Path] | None = None
        self._memory = MemoryWatch(None, 1, share=MEMORY_SHARE)
        self._memory_due = Interval(LOOK_EVERY_S)
        self._round_began_at: int | None = None
        self._is_whole = False
        self._imported: list[str] = []
        self._updates_lost = report.counts.updates_lost
        self.is_restored = False

    def work(self) -> bool:
        """One decision of every env and the updates that it makes due, or a part of these; True
        when the round is complete.

        Raises:
            TrainingError: If fewer workers than ``actors.min_live`` are left.
        """
        if self._round_began_at is None:
            self._round_began_at = self.learner.train_steps
            if self._memory_due.is_due():
                self._check_memory()
            if self.gateway is not None:
                self.gateway.answer(0.0 if self.workers.live else WAIT_FOR_CLIENTS_S)
                self.gateway.store()
            self._act()
        most = None
        if self._trains_offline:
            most = self._round_began_at + OFFLINE_UPDATES_PER_ROUND - self.learner.train_steps
        if not self.train_due(most, time.monotonic() + TRAIN_FOR_S):
            return False
        self._round_began_at = None
        return True

    def _check_memory(self) -> None:
        """Leave with a checkpoint while there is memory for one: an env in this process cannot be
        ended alone.

        Raises:
            TrainingError: If memory is short, and most of it is held by this process.
        """
        found = self._memory.excess(lambda: tree_of(os.getpid()))
        if found is not None:
            size, bound = found
            raise TrainingError(
                f"this process and its envs held {size / 1e9:.2f} GB of memory, and of the "
                f"{bound.owner}'s {bound.total / 1e9:.1f} GB {bound.left / 1e9:.2f} were left; an "
                "env that grows is ended alone with --runtime ray, and replay takes less with "
                f"--replay.ram-gb; go on with --resume {shlex.quote(str(self._folder.path))}"
            )

    def _act(self) -> None:
        """One decision of every env, if the run needs more steps. What is open is stored first when
        these are its last, or when the train ratio allows no more of them.
        """
        if not self._needs_steps():
            return
        if not self.replay.coordinator.may_make(
            self.workers.num_envs, in_hand=self.workers.steps_in_chunks
        ):
            self.workers.flush()
            return
        if self.workers.step():
            self.look()
            live, every = len(self.workers.live), len(self.workers.workers)
            check_live(self._plan, live, every, self._report.quarantined)
        if not self._needs_steps():
            self.workers.flush()

    def _needs_steps(self) -> bool:
        made = self.replay.coordinator.limiter.agent_steps + self.workers.steps_in_chunks
        return made < self._plan.target_agent_steps

    def train_due(self, most: int | None = None, until: float = float("inf")) -> bool:
        """Make every update that is due (at most ``most``), then publish.

        Returns:
            False if ``until`` (monotonic time) came first.
        """
        sampling = self._plan.spec.sampling
        stop_at = None if most is None else self.learner.train_steps + most
        while self.owes_update and not self._stop.is_set and self.learner.train_steps != stop_at:
            if time.monotonic() > until:
                return False
            if self.gateway is not None:
                self.gateway.answer()
            request = SampleRequest(
                sampling.batch_size,
                (role_seed(self._plan, "sampling"), self.learner.train_steps, 0),
            )
            batch = self.replay.sample(request)
            self._is_whole = False
            self._train(batch)
            self._is_whole = True
        if self._has_trained() and self.weights.version().update < self.learner.train_steps:
            self.learner.publish(waits=True)
        return True

    def _train(self, batch: SampledWindows) -> None:
        try:
            self.learner.train(batch)
        except CaptureFailedError as error:
            self._folder.note_eager(str(error))
            raise TrainingError(
                f"{error}, and this process cannot go on after that; go on without capturing: "
                f"--resume {shlex.quote(str(self._folder.path))}"
            ) from error

    def close(self) -> None:
        """Close envs and shards."""
        self._close_gateway()
        self.workers.close()
        self.replay.close()
        if self._otlp is not None:
            self._otlp.close()
        if self.endpoint is not None:
            self.endpoint.shutdown()
            self.endpoint.server_close()

    def _close_gateway(self) -> None:
        """Store what clients have sent, and let them go."""
        if self.gateway is not None:
            gateway = self.gateway
            self.gateway = None
            self._report.gateway = gateway.counts
            if left := gateway.close():
                logger.warning("%d rows of clients could not be stored", left)
            self._report.gateway = gateway.counts

    def rescue(self) -> None:
        """Keep what was trained before a failure; not what a failing update or a failing checkpoint
        left half done.
        """
        if not self._is_whole:
            return
        try:
            logger.info("failed; what was trained so far is in %s", self.checkpoint())
        except Exception as error:  # the failure before it is the one to tell
            logger.warning("no checkpoint could be written: %s: %s", type(error).__name__, error)

    def _has_trained(self) -> bool:
        return self._plan.is_pretrained(self.learner.train_steps)

    @property
    def _trains_offline(self) -> bool:
        """True while updates are made on data from files alone, and nothing acts."""
        return self._plan.is_offline or self._is_first_offline

    @property
    def _is_first_offline(self) -> bool:
        """True before the updates of ``--offline-steps`` are made."""
        return self.replay.coordinator.limiter.is_offline

    @property
    def num_windows(self) -> int | None:
        """Windows that replay has to sample from: here whether there are any."""
        return int(self.replay.has_windows)

    @property
    def owes_update(self) -> bool:
        """True when stored steps ask for another update."""
        return (
            self.replay.coordinator.limiter.may_sample(self._plan.spec.sampling.trained_positions)
            and self.replay.has_windows
        )

    def start(self) -> None:
        """Go on from the newest checkpoint, or begin; what may fail comes before what changes the
        run folder.
        """
        found = self._found
        tree: Mapping[str, Any] = found[1] if found is not None else {}
        if found is not None:
            check_trained_env(self._plan, found[0].name, self._store.facts(found[0]))
            with reading(found[0], LACKS):
                self.learner.load_state_dict(tree["learner"])
        else:
            begin_with(self._plan, self.learner.agent)
        if not self._plan.spec.random_prefill or self._has_trained():
            self.learner.publish(waits=True)
        self.workers.begin(tree.get("workers", ()))
        wanted = split_sources(self._plan.config.replay.load)
        # earlier versions stored all of them first
        stored = tree.get("imported", wanted if found else ())
        self._imported = ImportList(self._folder.path, wanted).take_new()
        files = files_to_store(self._imported, stored)
        if found is not None:
            held = self.replay.row_counters().inserted
            with reading(found[0], LACKS):
                self.replay.rollback([ShardSnapshot(**snapshot) for snapshot in tree["marks"]])
                self._restore_limiter(tree)
                self.evaluator.asked_at = int(tree["evaluated_at"])
            left_out = held - self.replay.row_counters().inserted
            lost = max(0, self._report.counts.train_steps - self.learner.train_steps)
            self._updates_lost += lost
            what = f"; {left_out:,} rows and {lost:,} updates that came after it are made again"
            logger.info("goes on from %s%s", found[0].name, what if left_out or lost else "")
        for source in files:
            self._load(source)
        if self._trains_offline and not self.replay.has_windows:
            raise BufferError(
                "replay.load: the files hold no "
                f"{self._plan.spec.sampling.window_rows} consecutive rows, which one "
                "window of "
                f"{self._plan.agent.name} needs; name longer episodes or sample shorter windows"
            )
        self.look()
        if found is not None:  # what was counted beyond the checkpoint is rolled back
            self._reported = self._report.counts
        self._checkpoint_at = self._report.progress
        self._saved_updates = self.learner.train_steps
        self._was_offline = self._is_first_offline
        self._is_whole = True
        if self._plan.config.gateway_port is not None:
            self.gateway = LocalGateway(self._plan, self._folder, self.weights, self.replay)
        self.is_restored = True

    def _load(self, source: str) -> None:
        """Store a file; a bad one costs only itself."""
        try:
            logger.info("%s: %s", source, self.replay.load(source))
        except (CheckpointError, ConfigurationError, MissingDependencyError) as error:
            logger.error("%s was not imported: %s", source, error)
            self._imported.remove(source)
            self._report.left_out = {**self._report.left_out, source: str(error)}

    def _restore_limiter(self, tree: Mapping[str, Any]) -> None:
        """Go on exactly; where the settings that debts follow from have changed, what lies outside
        the band is forgiven.
        """
        limiter = self.replay.coordinator.limiter
        limiter.load(tree["limiter"])
        now = asdict(self._plan.limits)
        if now | tree.get("limits", {}) != now:
            limiter.clamp_debt()

    @property
    def _step(self) -> int:
        """By which checkpoints are named."""
        if self._plan.is_offline:
            return self.learner.train_steps
        return self._report.counts.counters.agent_steps

    @property
    def _facts(self) -> dict[str, Any]:
        """What a checkpoint says of the run that wrote it."""
        return {
            "env_steps": self._report.env_steps,
            "train_steps": self.learner.train_steps,
            **trained_facts(self._plan),
        }

    def checkpoint(self) -> Path:
        """One cut through all roles; see the module. A stop in the middle of pretraining leaves the
        rest of it to the resumed run.
        """
        states = self.workers.states()
        self.train_due(0 if self._trains_offline else None)
        self.look()
        self._checkpoint_at = self._report.progress
        self._saved_updates = self.learner.train_steps
        self._report.counts.counters.check()
        try:
            # within, because each snapshot drops the oldest: a second try would drop the last that
            # a checkpoint needs
            marks = [asdict(snapshot) for snapshot in self.replay.snapshot()]
            tree = {
                "learner": self.learner.state_dict(),
                "marks": marks,
                "limiter": self.replay.coordinator.limiter.state(),
                "workers": states,
                "evaluated_at": self.evaluator.asked_at,
                "limits": asdict(self._plan.limits),
                "imported": self._imported,
            }
            folder = self._store.save(self._step, tree, self._facts)
        except (OSError, SafetensorError, CheckpointError, StateError) as error:
            self._is_whole = False  # there is no sense in trying it again
            remedy = "make room, then " if isinstance(error, OSError | SafetensorError) else ""
            raise CheckpointError(
                f"the checkpoint at {self._report.progress} steps cannot be written "
                f"({error}); earlier ones are kept: {remedy}"
                f"go on with --resume {shlex.quote(str(self._folder.path))}"
            ) from error
        self._newest = (self._report.env_steps, folder)
        self._folder.try_write_summary(self._report.summary("running"))
        return folder

    def _note_score(self, return_mean: float) -> None:
        """Keep the weights that an evaluation scored higher than any before as the best checkpoint:
        the newest one if it is of this moment, else one that nothing goes on from.
        """
        if self._newest is not None and self._newest[0] == self._report.env_steps:
            self._store.mark_best(self._newest[1], return_mean)
            return
        tree = {"learner": self.learner.state_dict()}
        self._store.save_best(tree, {"step": self._step, **self._facts}, return_mean)

    def save_when_due(self) -> None:
        """Predictions as videos, and a checkpoint, also of what the offline updates came to."""
        steps = self._report.progress
        if self.prediction_videos.is_due(steps):
            self.learner.report(self.prediction_videos, steps)
        made, most = steps - self._checkpoint_at, self._plan.config.learner.checkpoint_every_steps
        was_offline, self._was_offline = self._was_offline, self._is_first_offline
        if self._was_offline:
            made = self.learner.train_steps - self._saved_updates
            most = min(most, OFFLINE_UPDATES_PER_CHECKPOINT)
        if made >= most or (was_offline and not self._was_offline):
            self.checkpoint()

    def end(self) -> None:
        """The last checkpoint."""
        self._close_gateway()
        self.checkpoint()
        self._is_whole = False  # nothing is left to rescue
        self.learner.report(self.prediction_videos, self._report.env_steps, wait_s=LAST_REPORT_S)
        self.prediction_videos.close()

    def _collect_worker(self, worker: RolloutWorker) -> None:
        episodes = [episode.to_fact() for episode in worker.drain_episodes()]
        self.hub.emit("actor", worker.slot, worker.drain_metrics(), {"episodes": episodes})

    def look(self) -> None:
        """Read the counters."""
        coordinator = self.replay.coordinator
        counts = Counts(
            counters=self.replay.row_counters(),
            positions=coordinator.limiter.positions,
            train_steps=self.learner.train_steps,
            policy_version=str(self.weights.version()),
            debt=float(coordinator.limiter.debt),
            forgiven=str(coordinator.limiter.forgiven),
            updates_lost=self._updates_lost,
        )
        self._report.update(counts, self._report.snapshot)
        self._report.quarantined = self.workers.quarantined

    def collect(self) -> None:
        """Bring the counters, in the middle of a long round too, and the metrics of all roles into
        the report.
        """
        self.look()
        for worker in self.workers.workers:
            self._collect_worker(worker)
        if self.gateway is not None:
            self.hub.emit("gateway", 0, *self.gateway.drain_metrics())
            self._report.gateway = self.gateway.counts
        self.hub.emit("replay", 0, self.replay.drain_written_back().to_metrics())
        self.hub.emit("replay", 0, priority_metrics(self.replay.drain_prioritised()))
        self.hub.emit("replay", 0, drawn_metrics(self.replay.drain_drawn()))
        self.hub.emit("learner", 0, self.learner.drain_metrics())
        self.hub.emit(
            "driver",
            0,
            {
                **self._report.gauges(),
                **self._report.increments(self._reported),
                **self._node.drain(),
                **self._process.drain(),
            },
        )
        self._reported = self._report.counts
        self._report.update(self._report.counts, self.hub.snapshot())


def _is_small(agent: Agent) -> bool:
    return agent.policy_weights().nbytes < SMALL_BYTES
