"""All roles of a run in one process, in lock-step: the same classes as on Ray, in a fixed order, so
that a seed fixes everything.

    for ever:  every worker makes one decision per env  ->  chunks that closed are stored
               ->  every update that is now due is made  ->  new weights are published

The version that acts is a function of the row count. A checkpoint is one cut through all roles:
open chunks are flushed, replay takes a snapshot, and envs that can be saved are saved; those that
cannot begin new episodes there, in a run that was never interrupted too. So a resumed run equals an
uninterrupted one, bit for bit on a CPU. Does not need Ray.

A run that fails outside of training, for example in an evaluation, writes a checkpoint before it
ends. A worker whose envs are all in quarantine is left out while ``actors.min_live`` others go on;
a resumed run tries it again.
"""

from __future__ import annotations

import logging
import math
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from worldloom.core.exceptions import BufferError, CheckpointError, TrainingError
from worldloom.data.selector_spec import parse_selector
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.assembly import (
    build_learner,
    build_shard,
    build_store,
    check_live,
    check_none,
    check_trained_env,
    env_facts,
)
from worldloom_dist.console import PROGRESS, show_nothing
from worldloom_dist.learner.prediction_videos import PredictionVideos
from worldloom_dist.learner.step import prepare_torch
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.local_evaluation import LocalEvaluations
from worldloom_dist.local_workers import LocalWorkers
from worldloom_dist.metrics.endpoint import read_secret, serve_near
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.process import NodeMeter
from worldloom_dist.outcome import check_windows, shortfall
from worldloom_dist.plan import Plan, role_seed
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.replay.imports import ImportList, split_sources
from worldloom_dist.replay.meter import priority_metrics
from worldloom_dist.replay.planning import files_to_store
from worldloom_dist.replay.snapshots import ShardSnapshot
from worldloom_dist.report import Counts, Report
from worldloom_dist.run_folder import RunFolder, build_facts
from worldloom_dist.stopping import StopFlag
from worldloom_dist.view import View

__all__ = ["LocalRun"]

logger = logging.getLogger(__name__)
Show = Callable[[Callable[[], View]], None]

SAY_EVERY_AGENT_STEPS = 500
LAST_REPORT_S = 10.0
OFFLINE_UPDATES_PER_ROUND = 100
"""Without an env a round is so many updates, and so many are made between two looks at
what is due.
"""


class LocalRun:
    """One run in this process.

    Args:
        plan: What runs.
        folder: Where it writes; of a run that goes on nothing in it changes before the run is
            restored.
        port: Of the Prometheus endpoint; 0 for none.
        stop: Asks it to checkpoint and leave.
        show: Shows a view to people.
        on_restored: Called when the run is known to work, before its first step.

    Raises:
        CheckpointError: If there are checkpoints, and none of them can be read.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        port: int,
        stop: StopFlag,
        show: Show = show_nothing,
        on_restored: Callable[[], object] = lambda: None,
    ) -> None:
        folder = RunFolder(folder.path.absolute())  # an env may change the working directory
        self._plan = plan
        self._folder = folder
        self._stop = stop
        self._show = show
        self._on_restored = on_restored
        own = plan.config.learner
        device = "cpu" if own.device == "auto" else own.device
        prepare_torch(
            device,
            threads=own.threads or torch.get_num_threads(),
            tf32=own.tf32,
            deterministic=own.deterministic,
        )
        self.hub = MetricsHub(
            plan.run_id, {"env": plan.env.env, "agent": plan.agent.name}, build_facts()
        )
        secret = read_secret(plan.config.metrics_auth_file)
        self._endpoint, _ = serve_near(self.hub, plan.config.metrics_host, port, secret)
        self.report = Report(plan, folder, folder.read_json("summary.json"))
        self.weights = WeightStore()
        self._store = build_store(plan, folder.path)
        self._found = self._store.newest()
        if self._found is None:
            check_none(self._store)
            # rows from before a kill belong to no cut: begin again
            shutil.rmtree(folder.replay, ignore_errors=True)
        shards = [
            build_shard(plan, index, folder.replay) for index in range(plan.config.replay.shards)
        ]
        self.replay = DirectReplay(
            shards,
            ReplayCoordinator(plan.limits, window_positions=plan.spec.sampling.length),
            is_lockstep=True,
        )
        self.learner = build_learner(
            plan, self.weights, device=device, incarnation=1, folder=folder.path
        )
        self.learner.write_back = self.replay.write_back
        if parse_selector(plan.config.replay.selector).uses_priorities:
            self.learner.update_priorities = self.replay.update_priorities
        self.prediction_videos = PredictionVideos(
            folder.videos, plan.config.learner.report_every_steps, self.report.env_steps
        )
        self.workers = LocalWorkers(plan, self.weights, self.replay)
        self.evaluations = LocalEvaluations(plan, folder, self.report, self.weights, stop)
        self._said_at = 0
        self._node = NodeMeter(folder.path)
        self._reported = self.report.counts
        self._checkpoint_at = 0
        self._is_whole = False
        self._imported: list[str] = []

    def run(self) -> str:
        """Run to the end.

        Returns:
            ``completed`` or ``stopped``.

        Raises:
            TrainingError: If the run cannot go on; ``summary.json`` says so too.
        """
        earlier = self._folder.read_json("summary.json") if self._found is not None else None
        self._folder.write_summary(self.report.summary("running"))
        try:
            self._restore()
            self._on_restored()
            earlier = None
            while not self._is_complete() and not self._stop.is_set:
                self.round()
            status = self._finish()
        except BaseException as error:
            if isinstance(error, Exception):
                self._save_what_is_whole()
            failed = self.report.summary("failed", f"{type(error).__name__}: {error}")
            self._folder.try_write_summary(earlier or failed)  # what cannot go on stays as it was
            raise
        finally:
            self.close()
            self.report.close()
        return status

    def _finish(self) -> str:
        """The last checkpoint and the last evaluation; returns how the run ended.

        Raises:
            TrainingError: If its steps are made, and it did not do what it was asked for.
        """
        last = self._checkpoint()
        status = "completed" if self._is_complete() else "stopped"
        self.learner.report(self.prediction_videos, self.report.env_steps, wait_s=LAST_REPORT_S)
        if status == "completed" and self._wants_evaluation() and not self.evaluations.is_current:
            score = self.evaluations.evaluate()
            if score is None:
                status = "stopped"
            else:
                self._mark_best(last, score)
        self.prediction_videos.close()
        missing = None
        if status == "completed":
            evaluation = self.report.evaluation if self.evaluations.is_current else None
            missing = shortfall(self._plan, self.learner.train_steps, evaluation)
        self._say(status if missing is None else "failed")
        if missing is not None:
            self._is_whole = False  # the last checkpoint is written
            raise TrainingError(missing)
        return status

    def round(self) -> None:
        """One decision of every env, the updates that it makes due, and whatever else is due then.

        Raises:
            TrainingError: If fewer workers than ``actors.min_live`` are left.
        """
        if not self._has_steps() and self.workers.step():
            self._look()
            workers = self.workers
            check_live(self._plan, len(workers.live), len(workers.workers), self.report.quarantined)
        self.train_due(OFFLINE_UPDATES_PER_ROUND if self._plan.is_offline else None)
        self._look()
        self._show(self.report.view)
        config = self._plan.config
        steps = self._progress
        if not self.learner.train_steps:
            check_windows(
                self._plan, self.report.counts.counters.agent_steps, int(self.replay.has_windows)
            )
        if self.prediction_videos.is_due(steps):
            self.learner.report(self.prediction_videos, steps)
        is_due = config.eval_every and steps - self.evaluations.evaluated_at >= config.eval_every
        if is_due and self._wants_evaluation():
            self.evaluations.evaluate()
        if steps - self._checkpoint_at >= config.learner.checkpoint_every_steps:
            self._checkpoint()
        if steps - self._said_at >= SAY_EVERY_AGENT_STEPS:
            self._said_at = steps
            self._say("running")

    def train_due(self, most: int | None = None) -> None:
        """Make every update that is due (at most ``most``), then publish."""
        sampling = self._plan.spec.sampling
        before = self.learner.train_steps
        while self._owes_update() and not self._stop.is_set:
            if most is not None and self.learner.train_steps - before >= most:
                break
            request = SampleRequest(
                sampling.batch_size,
                (role_seed(self._plan, "sampling"), self.learner.train_steps, 0),
            )
            batch = self.replay.sample(request)
            self._is_whole = False
            self.learner.train(batch)
            self._is_whole = True
        if self.learner.train_steps > before and self._has_trained():
            self.learner.publish()

    def close(self) -> None:
        """Close envs and shards."""
        self.workers.close()
        self.replay.close()
        if self._endpoint is not None:
            self._endpoint.shutdown()
            self._endpoint.server_close()

    def _save_what_is_whole(self) -> None:
        """Keep what was trained before a failure; not what a failing update or a failing checkpoint
        left half done.
        """
        if not self._is_whole:
            return
        try:
            logger.info("failed; what was trained so far is in %s", self._checkpoint())
        except Exception as error:  # the failure before it is the one to tell
            logger.warning("no checkpoint could be written: %s: %s", type(error).__name__, error)

    def _wants_evaluation(self) -> bool:
        return self._plan.config.eval_episodes > 0 and self._has_trained()

    def _has_trained(self) -> bool:
        return self.learner.train_steps >= max(1, self._plan.spec.pretrain_updates)

    @property
    def _progress(self) -> int:
        """What checkpoints, evaluations and lines are counted in: env steps, or updates where there
        is no env.
        """
        return self.learner.train_steps if self._plan.is_offline else self.report.env_steps

    def _has_steps(self) -> bool:
        return self.report.counts.counters.agent_steps >= self._plan.target_agent_steps

    def _is_complete(self) -> bool:
        """Enough steps are stored, and what they owe to training has been paid; without an env,
        enough updates are made.
        """
        if self._plan.is_offline:
            return self.learner.train_steps >= self._plan.config.train_steps
        return self._has_steps() and not self._owes_update()

    def _owes_update(self) -> bool:
        return (
            self.replay.coordinator.limiter.may_sample(self._plan.spec.sampling.trained_positions)
            and self.replay.has_windows
        )

    def _restore(self) -> None:
        """Go on from the newest checkpoint, or begin; what may fail comes before what changes the
        run folder.
        """
        found = self._found
        tree: Mapping[str, Any] = found[1] if found is not None else {}
        if found is not None:
            check_trained_env(self._plan, found[0].name, self._store.facts(found[0]))
            self.learner.load_state_dict(tree["learner"])
        if not self._plan.spec.random_prefill or self._has_trained():
            self.learner.publish()
        self.workers.begin(tree.get("workers", ()))
        wanted = split_sources(self._plan.config.replay.load)
        # earlier versions stored all of them first
        stored = tree.get("imported", wanted if found else ())
        self._imported = ImportList(self._folder.path, wanted).take_new()
        files = files_to_store(self._imported, stored, self._plan.columns)
        if found is not None:
            self.replay.rollback([ShardSnapshot(**snapshot) for snapshot in tree["marks"]])
            self._restore_limiter(tree)
            self.evaluations.evaluated_at = tree["evaluated_at"]
            logger.info("goes on from %s", found[0].name)
        for source in files:
            logger.info("%s: %s", source, self.replay.load(source))
        if self._plan.is_offline and not self.replay.has_windows:
            raise BufferError(
                "replay.load: the files hold no "
                f"{self._plan.spec.sampling.window_rows} consecutive rows, which one "
                "window of "
                f"{self._plan.agent.name} needs; name longer episodes or sample shorter windows"
            )
        self._look()
        if found is not None:  # what was counted beyond the checkpoint is rolled back
            self._reported = self.report.counts
        self._checkpoint_at = self._progress
        self._is_whole = True

    def _restore_limiter(self, tree: Mapping[str, Any]) -> None:
        """Go on exactly; where the settings that debts follow from have changed, what lies outside
        the band is forgiven.
        """
        limiter = self.replay.coordinator.limiter
        limiter.load(tree["limiter"])
        if tree.get("limits", asdict(self._plan.limits)) != asdict(self._plan.limits):
            limiter.rebase(limiter.agent_steps, limiter.positions)

    def _checkpoint(self) -> Path:
        """One cut through all roles; see the module. A stop in the middle of pretraining leaves the
        rest of it to the resumed run.
        """
        states = self.workers.states()
        self.train_due(0 if self._plan.is_offline else None)
        self._look()
        self._checkpoint_at = self._progress
        self.report.counts.counters.check()
        tree = {
            "learner": self.learner.state_dict(),
            "marks": [asdict(snapshot) for snapshot in self.replay.snapshot()],
            "limiter": self.replay.coordinator.limiter.state(),
            "workers": states,
            "evaluated_at": self.evaluations.evaluated_at,
            "limits": asdict(self._plan.limits),
            "imported": self._imported,
        }
        facts = {
            "env_steps": self.report.env_steps,
            "train_steps": self.learner.train_steps,
            **env_facts(self._plan),
        }
        step = (
            self.learner.train_steps
            if self._plan.is_offline
            else self.report.counts.counters.agent_steps
        )
        try:
            folder = self._store.save(step, tree, facts)
        except (OSError, SafetensorError, CheckpointError) as error:
            self._is_whole = False  # there is no sense in trying it again
            raise CheckpointError(
                f"the checkpoint at {self._progress} steps cannot be written "
                f"({error}); earlier ones are kept: make room, then "
                f"go on with --resume {shlex.quote(str(self._folder.path))}"
            ) from error
        evaluation = self.report.evaluation
        if evaluation is not None and evaluation["env_steps"] == self.report.env_steps:
            self._mark_best(folder, evaluation["return_mean"])
        self._folder.write_summary(self.report.summary("running"))
        return folder

    def _mark_best(self, folder: Path, score: float) -> None:
        if math.isfinite(score):
            self._store.mark_best(folder, score)

    def _collect(self, worker: RolloutWorker) -> None:
        episodes = [episode.to_fact() for episode in worker.drain_episodes()]
        self.hub.emit("actor", worker.slot, worker.drain_metrics(), {"episodes": episodes})

    def _look(self) -> None:
        coordinator = self.replay.coordinator
        counts = Counts(
            counters=self.replay.row_counters(),
            positions=coordinator.limiter.positions,
            train_steps=self.learner.train_steps,
            policy_version=str(self.weights.version()),
            debt=float(coordinator.limiter.debt),
        )
        self.report.update(counts, self.report.snapshot)
        self.report.quarantined = self.workers.quarantined

    def _say(self, status: str) -> None:
        for worker in self.workers.workers:
            self._collect(worker)
        self.hub.emit("replay", 0, self.replay.drain_written_back().to_metrics())
        self.hub.emit("replay", 0, priority_metrics(self.replay.drain_prioritised()))
        self.hub.emit("learner", 0, self.learner.drain_metrics())
        self.hub.emit(
            "driver",
            0,
            {
                **self.report.gauges(),
                **self.report.increments(self._reported),
                **self._node.drain(),
            },
        )
        self._reported = self.report.counts
        self.report.update(self.report.counts, self.hub.snapshot())
        logging.getLogger(PROGRESS).info("%s", self.report.line())
        self.report.record()
        self._folder.write_summary(self.report.summary(status))
