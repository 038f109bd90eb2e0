"""The learner as a Ray actor: a thin shell around ``worldloom_dist.learner``.

The learner's ``run`` is its run_forever: it trains until it is told to stop. ``ping`` and
``note_score`` arrive on other threads and only set or read plain values; everything that touches
the agent happens on the thread of ``run``, between two updates, so a checkpoint is one cut. It is
written by a thread of its own (``learner.checkpointing``).

With several ranks (``runtime.learner_group``) each one is such an actor. Rank 0 restores,
publishes, checkpoints and reports.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldloom.core.devices import resolve_device
from worldloom.core.exceptions import StateError
from worldloom.core.metrics import Histogram, Last, MetricMap, Sum
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.core.sequence import NO_POLICY
from worldloom.data.selector_spec import parse_selector
from worldloom_dist.interfaces import Coordinator, coordinator_client
from worldloom_dist.learner.prediction_videos import PredictionVideos
from worldloom_dist.metrics.names import BUCKETS_S
from worldloom_dist.metrics.process import gpu_metrics
from worldloom_dist.ports import MirrorPlace, RowCounters
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.run.builders import build_learner, build_store, trained_facts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.initial_agent import begin_with
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import Plan
from worldloom_dist.run.standby import mirror_limit
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.learner_group import join_group
from worldloom_dist.runtime.learner_state import newest_state
from worldloom_dist.runtime.log_forwarder import LogForwarder
from worldloom_dist.runtime.prefetcher import BatchPrefetcher
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter
from worldloom_dist.runtime.weight_roles import RemoteWeights

if TYPE_CHECKING:
    from worldloom_dist.learner.mirror import MirrorReader, StateMirror

__all__ = ["LearnerRole", "of_another_rank"]

logger = logging.getLogger(__name__)

GIVES_WAY = 4
"""Steps of niceness by which a learner gives way where clients of a gateway wait for answers."""

THREADS_SHARE = 2
"""The learner takes one in this many cores unless told otherwise."""
COUNTED_ONCE = (
    "learner_updates_total",
    "learner_replayed_steps_total",
    "learner_skipped_updates_total",
)
"""What all ranks do together: rank 0 alone reports it, or the joint work would be counted once per
rank.
"""


class LearnerRole:
    """Trains until told to stop.

    Args:
        plan: Of the run.
        folder: The run folder.
        incarnation: Of this learner (or group of ranks) in the run; 0 for one that stands by.
        rank: Which of ``plan.config.learners`` ranks this is.
    """

    def __init__(self, plan: Plan, folder: Path, incarnation: int, rank: int = 0) -> None:
        keep_freed_memory(is_training=True)
        self._plan = plan
        self._folder = RunFolder(folder)
        self._incarnation = incarnation
        self._is_standby = not incarnation
        self._rank = rank
        self._stopping = threading.Event()
        self._save_wanted = threading.Event()
        self._status: dict[str, Any] = {"pid": os.getpid(), "state": "starting"}
        self._published = NO_POLICY
        self._counts: dict[str, Any] = {}
        self._log_forwarder = LogForwarder("worldloom_dist.learner", __name__).listen()
        self._score: float | None = None
        self._meeting: tuple[str, int] | None = None
        self._mirror: StateMirror | None = None
        self._followed: MirrorReader | None = None
        self._is_wanted = threading.Event()
        self._is_built = threading.Event()

    def stand_by(self) -> dict[str, Any]:
        """Build everything and wait behind another learner, until it is to take over."""
        try:
            self._build()
            self._status["state"] = "standby"
        finally:
            self._is_built.set()
        reporter = Reporter("standby")
        while not self._is_wanted.wait(FLUSH_EVERY_S):
            reporter.emit()
        return dict(self._status)

    def follow(self, place: MirrorPlace) -> None:
        """Follow the state that a learner of this machine keeps in shared memory."""
        from worldloom_dist.learner.mirror import MirrorReader

        try:
            followed = MirrorReader(place)
        except OSError as error:  # it has died meanwhile, or has opened another one
            logger.info("there is nothing to follow in process %d (%s)", place.process, error)
            return
        former = self._followed
        self._followed = followed
        self._status["follows"] = place
        if former is not None:
            former.close()

    def take_over(self, incarnation: int) -> None:
        """Be the learner of this incarnation, from the state that was followed: :meth:`run` is
        called next, and the former learner's process has ended.
        """
        self._incarnation = incarnation
        self._is_wanted.set()

    def run(self) -> dict[str, Any]:
        """Build or restore the agent, train, publish, checkpoint; returns the last status."""
        from worldloom_dist.learner.step import CaptureFailedError

        if self._is_standby:
            self._await_build()
        else:
            self._build()
        self._restore()
        self._prediction_videos = PredictionVideos(
            self._folder.videos, self._plan.config.learner.report_every_steps, self._env_steps()
        )
        self._prefetcher = BatchPrefetcher(
            self._plan,
            self._learner.train_steps,
            self._learner.stager.stage,
            rank=self._rank,
            began_at=self._learner.replayed_steps,
        )
        if self._plan.spec.writes_back:
            self._learner.write_back = self._prefetcher.write_back
        if parse_selector(self._plan.config.replay.selector).uses_priorities:
            self._learner.update_priorities = self._prefetcher.update_priorities
        gc.collect()
        gc.freeze()
        try:
            self._loop()
        except CaptureFailedError as error:  # the next incarnation goes on eagerly
            self._folder.note_eager(str(error))
            raise
        finally:
            self._prefetcher.stop()
        if self._rank == 0:
            self._publish_last()
            self._save()
            self._writer.close()
            self._learner.report(
                self._prediction_videos, self._env_steps(), wait_s=DEADLINES.last_videos_s
            )
        self._prediction_videos.close(DEADLINES.last_videos_s)
        self._flush()
        self._note("stopped")
        self._group.close()
        return dict(self._status)

    def rendezvous(self, incarnation: int) -> tuple[str, int] | None:
        """Where rank 0 waits for the other ranks of this incarnation; None when it does not yet."""
        return self._meeting if incarnation == self._incarnation else None

    def ping(self) -> dict[str, Any]:
        """Counters and what it is doing."""
        return {**self._status, "said": self._log_forwarder.drain()}

    def note_score(self, score: float) -> None:
        """Take the result of an evaluation: a checkpoint of about now is kept as ``best`` if no
        better one is there.

        Once :meth:`run` has returned, it is the last checkpoint that the score belongs to.
        """
        if self._status["state"] == "stopped":
            self.store.mark_best(self.store.folders()[0], score)
            return
        self._score = score
        self._save_wanted.set()

    def stop(self) -> None:
        """Ask to end, with a checkpoint."""
        self._stopping.set()

    def _await_build(self) -> None:
        """Be what :meth:`take_over` says, with what :meth:`stand_by` builds in another thread."""
        is_told = self._is_wanted.wait(DEADLINES.take_over_s)
        is_built = self._is_built.wait(DEADLINES.start_s) and self._status["state"] == "standby"
        if not is_told or not is_built:
            raise StateError("a standby that is to take over was not told so, or was not built")
        self._learner.incarnation = self._incarnation

    def _build(self) -> None:
        from worldloom_dist.learner.checkpointing import CheckpointWriter
        from worldloom_dist.learner.step import prepare_torch

        config = self._plan.config.learner
        ranks = self._plan.config.learners
        self._device = device = resolve_device(config.device)
        threads = config.threads or max(1, (os.cpu_count() or 2) // THREADS_SHARE // ranks)
        if self._plan.config.gateway_port is not None:
            os.nice(GIVES_WAY)
        prepare_torch(device, threads=threads, tf32=config.tf32, deterministic=config.deterministic)
        self._coordinator = coordinator_client()
        self._weights = RemoteWeights()
        self._reporter = Reporter("learner", self._rank)
        self._learner = build_learner(
            self._plan,
            RemoteWeights(),
            device=device,
            incarnation=self._incarnation,
            folder=self._folder.path,
        )
        self._group: ProcessGroup = SINGLE_PROCESS
        if ranks > 1:
            self._group = join_group(
                self._rank, ranks, self._incarnation, device=device, announce=self._announce
            )
            self._learner.agent.join(self._group)
        if self._rank == 0:
            self.store = build_store(self._plan, self._folder.path)
            self._writer = CheckpointWriter(self.store, device)

    def _announce(self, address: tuple[str, int]) -> None:
        self._meeting = address

    def _restore(self) -> None:
        from worldloom_dist.learner.mirror import StateMirror

        saved = None
        if self._rank == 0:  # before any rank asks for rows
            saved, where = newest_state(self.store, self._plan, self._followed)
            if saved is not None:
                logger.info("learner %d goes on from %s", self._incarnation, where)
            self._coordinator.within(patience_s=DEADLINES.coordinator_patience_s).call(
                Coordinator.rebase_positions,
                int(saved["replayed_steps"]) if saved is not None else 0,
                self._followed.trained if self._followed is not None else None,
                self._incarnation,
            )
        if self._followed is not None:
            self._followed.close()
            self._followed = None
        saved = self._group.broadcast(saved)
        if saved is not None:
            self._learner.load_state_dict(saved)
        else:
            begin_with(self._plan, self._learner.agent)
        if self._plan.standby[0]:
            self._mirror = StateMirror(mirror_limit())
        has_trained = self._plan.is_pretrained(self._learner.train_steps)
        if self._rank == 0 and (has_trained or not self._plan.spec.random_prefill):
            self._publish()
        self._note("training")

    def _loop(self) -> None:
        config = self._plan.config.learner
        publish = Interval(0.0 if self._plan.is_lockstep else config.publish_every_s)
        flush = Interval(FLUSH_EVERY_S)
        save = Interval(config.checkpoint_every_s)
        staged = None
        while True:
            started = time.monotonic()
            staged = staged if staged is not None else self._prefetcher.get(timeout_s=0.2)
            is_stopping, is_short = self._group.any(self._stopping.is_set(), staged is None)
            self._learner.note("wait_data", time.monotonic() - started)
            if is_stopping:
                return
            if staged is not None and not is_short:
                self._learner.train(staged)
                staged = None
                self._note("training")
                if self._mirror is not None:
                    self._learner.note("standby", self._mirror.follow(self._learner))
                    self._status["mirror"] = self._mirror.place
            if self._rank == 0:
                self._serve(publish, save)
            if flush.is_due():
                self._flush()

    def _serve(self, publish: Interval, save: Interval) -> None:
        """What rank 0 does for all after a round: publish, checkpoint, draw, whatever is due."""
        if self._may_publish() and publish.is_due(at_once=self._has_made_many()):
            self._publish()
        if (self._save_wanted.is_set() or save.is_due()) and self._writer.is_idle:
            self._save_wanted.clear()
            self._save()
        if self._prediction_videos.is_due(self._env_steps()):
            self._learner.report(self._prediction_videos, self._env_steps())

    def _may_publish(self) -> bool:
        """There is something new, the pretraining is over, and in lock-step every update that is
        due has been made.
        """
        steps = self._learner.train_steps
        if self._learner.version <= self._published or not self._plan.is_pretrained(steps):
            return False
        return not self._plan.is_lockstep or steps >= self._coordinator.call(
            Coordinator.updates_due
        )

    def _has_made_many(self) -> bool:
        """Enough updates since the newest version that is published."""
        made = self._learner.version.update - self._published.update
        return made >= self._plan.config.learner.publish_every_updates

    def _publish(self) -> None:
        self._published = self._learner.publish(waits=self._plan.is_lockstep)

    def _publish_last(self) -> None:
        """Publish what the last checkpoint will hold, and wait until the store, which reads from
        this process, has it.
        """
        steps = self._learner.train_steps
        if self._plan.is_pretrained(steps) and self._learner.version > self._published:
            self._publish()
        give_up = time.monotonic() + DEADLINES.last_publish_s
        while time.monotonic() < give_up:
            with contextlib.suppress(RoleGoneError):
                if self._weights.version() >= self._published:
                    return
            time.sleep(0.05)
        logger.warning("the weight store did not take version %s", self._published)

    def _save(self) -> None:
        """Copy the state and leave the rest to the writer's thread.

        Raises:
            StateError: If the run has a later learner: this one was taken for dead, and what it
                has trained since then is no part of the run.
        """
        newest = self._folder.incarnation("learner")
        if newest > self._incarnation:
            raise StateError(
                f"learner {self._incarnation} saves nothing: learner {newest} has its place"
            )
        counts = self._coordinator_counts()
        started = time.monotonic()
        tree = {
            "learner": self._learner.state_dict(),
            "agent": self._plan.agent.name,
            "coordinator": counts,
        }
        facts = {
            "train_steps": self._learner.train_steps,
            "replayed_steps": self._learner.replayed_steps,
            **counts,
        }
        facts |= trained_facts(self._plan)
        score = self._score
        self._score = None
        self._writer.save(self._learner.train_steps, tree, facts, score)
        self._learner.note("checkpoint", time.monotonic() - started)

    def _coordinator_counts(self) -> dict[str, Any]:
        """The coordinator's counters, checked, or those of the last time when it is away: the
        weights are worth saving all the same.
        """
        try:
            self._counts = self._coordinator.within(
                timeout_s=DEADLINES.counts_s, patience_s=DEADLINES.counts_patience_s
            ).call(Coordinator.counts)
            RowCounters(**self._counts["counters"]).check()
        except (RoleGoneError, StateError) as error:
            logger.error("%s", error)
        return self._counts

    def _flush(self) -> None:
        metrics: MetricMap = {
            **self._learner.drain_metrics(),
            **self._prefetcher.gauges(),
            **gpu_metrics(self._device),
        }
        if self._rank == 0:
            with contextlib.suppress(RoleGoneError):
                # the store was restarted and is empty: publish again
                if self._weights.version() < self._published:
                    self._published = NO_POLICY
            metrics |= self._checkpoint_metrics()
        else:
            metrics = of_another_rank(metrics)
        self._reporter.emit(metrics)

    def _env_steps(self) -> int:
        return self._plan.env_steps_at(self._learner.replayed_steps)

    def _checkpoint_metrics(self) -> MetricMap:
        written, failed = self._writer.finished()
        metrics: MetricMap = {"checkpoint_failures_total": Sum(failed)} if failed else {}
        for one in written:
            self._status["checkpoint_at"] = one.at
            metrics["checkpoint_seconds"] = Histogram.of(BUCKETS_S, one.seconds)
            metrics["checkpoint_bytes"] = Last(float(one.nbytes))
            metrics["checkpoint_last_success_timestamp_seconds"] = Last(one.at)
        return metrics

    def _note(self, state: str) -> None:
        steps = self._learner.train_steps
        replayed = self._learner.replayed_steps
        self._status.update(
            state=state,
            train_steps=steps,
            replayed_steps=replayed,
            version=tuple(self._learner.version),
        )


def of_another_rank(metrics: MetricMap) -> MetricMap:
    """What a rank other than the first adds: where its time went, how old its windows were, its
    share of every loss.
    """
    return {key: value for key, value in metrics.items() if not key.startswith(COUNTED_ONCE)}
