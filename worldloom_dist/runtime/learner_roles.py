"""The learner as a Ray actor: a thin shell around ``worldloom_dist.learner``.

The learner's ``run`` is its lifeline: it trains until it is told to stop. ``ping`` and ``save`` arrive on other threads and only
set or read plain values; everything that touches the agent happens on the thread of ``run``, between two updates, so a checkpoint
is one cut.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from worldloom.core.metrics import Histogram, Last, MetricMap, Sum
from worldloom.core.sequence import NO_POLICY
from worldloom_dist.assembly import Plan, build_learner
from worldloom_dist.learner.gallery import Gallery
from worldloom_dist.metric_names import BUCKETS_S
from worldloom_dist.run_folder import RunFolder
from worldloom_dist.runtime.feed import Feed
from worldloom_dist.runtime.pace import Pace
from worldloom_dist.runtime.remote import Remote, RoleGoneError
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["LearnerRole", "choose_device", "gpu_metrics"]

logger = logging.getLogger(__name__)

LAST_REPORT_S = 10.0
THREADS_SHARE = 2
"""The learner takes one in so many cores unless told otherwise."""


class LearnerRole:
    """Trains until told to stop.

    Args:
        plan: Of the run.
        folder: The run folder.
        incarnation: Of this learner in the run's life.
    """

    def __init__(self, plan: Plan, folder: Path, incarnation: int) -> None:
        self._plan, self._folder, self._incarnation = plan, RunFolder(folder), incarnation
        self._stopping, self._save_wanted = threading.Event(), threading.Event()
        self._status: dict[str, Any] = {"pid": os.getpid(), "state": "starting"}
        self._published = NO_POLICY
        self._score: float | None = None

    def run(self) -> dict[str, Any]:
        """Build or restore the agent, train, publish, checkpoint; returns the last status."""
        import torch

        from worldloom.training.checkpoints import CheckpointStore

        config = self._plan.config.learner
        torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 2) // THREADS_SHARE))
        self._store = CheckpointStore(self._folder.checkpoints, keep=config.keep_checkpoints)
        self._reporter, self._ledger, self._weights = Reporter("learner"), Remote("ledger-0"), RemoteWeights()
        self._device = choose_device(config.device)
        self._learner = build_learner(
            self._plan,
            self._weights,
            device=self._device,
            incarnation=self._incarnation,
            folder=self._folder.path,
        )
        self._restore()
        self._gallery = Gallery(self._folder.videos, config.report_every_steps, self._env_steps())
        self._feed = Feed(self._plan, self._learner.train_steps)
        if self._plan.spec.writes_back:
            self._learner.write_back = self._feed.write_back
        gc.collect()
        gc.freeze()
        try:
            self._loop()
        finally:
            self._feed.stop()
        self._save()
        self._learner.report(self._gallery, self._env_steps(), wait_s=LAST_REPORT_S)
        self._gallery.close(LAST_REPORT_S)
        self._flush()
        self._note("stopped")
        return dict(self._status)

    def ping(self) -> dict[str, Any]:
        """Counters and what it is doing."""
        return dict(self._status)

    def save(self) -> None:
        """Ask for a checkpoint at the next update's end."""
        self._save_wanted.set()

    def note_score(self, score: float) -> None:
        """Take the result of an evaluation: a checkpoint of about now is kept as ``best`` if no better one is there."""
        self._score = score
        self._save_wanted.set()

    def stop(self) -> None:
        """Ask to end, with a checkpoint."""
        self._stopping.set()

    def _restore(self) -> None:
        found = self._store.newest()
        if found is not None:
            folder, tree = found
            self._learner.load_state_dict(tree["learner"])
            logger.info("learner %d goes on from %s", self._incarnation, folder.name)
        self._ledger.call("rebase_positions", self._learner.replayed_steps, patience_s=120.0)
        if self._learner.train_steps >= max(1, self._plan.spec.pretrain_updates) or not self._plan.spec.random_prefill:
            self._publish()
        self._note("training")

    def _loop(self) -> None:
        config = self._plan.config.learner
        publish = Pace(0.0 if self._plan.is_lockstep else config.publish_every_s)
        flush, save = Pace(FLUSH_EVERY_S), Pace(config.checkpoint_every_s)
        while not self._stopping.is_set():
            started = time.monotonic()
            windows = self._feed.get(timeout_s=0.2)
            self._learner.note_wait(time.monotonic() - started)
            if windows is not None:
                self._learner.train(windows)
                self._note("training")
                if self._gallery.is_due(self._env_steps()):
                    self._learner.report(self._gallery, self._env_steps())
            if self._may_publish() and publish.is_due():
                self._publish()
            if flush.is_due():
                self._flush()
            if save.is_due() or self._save_wanted.is_set():
                self._save_wanted.clear()
                self._save()

    def _may_publish(self) -> bool:
        """There is something new, the burst is over, and in lock-step every update that is due has been made."""
        steps = self._learner.train_steps
        if self._learner.version <= self._published or steps < max(1, self._plan.spec.pretrain_updates):
            return False
        return not self._plan.is_lockstep or steps >= self._ledger.call("updates_due")

    def _publish(self) -> None:
        self._published = self._learner.publish().version

    def _save(self) -> None:
        started = time.monotonic()
        counts = self._ledger.call("counts")
        tree = {"learner": self._learner.state_dict(), "agent": self._plan.agent.name, "ledger": counts}
        facts = {"train_steps": self._learner.train_steps, "replayed_steps": self._learner.replayed_steps, **counts}
        try:
            saved = self._store.save(self._learner.train_steps, tree, facts)
        except OSError:
            self._reporter.emit({"checkpoint_failures_total": Sum(1)})
            raise
        score, self._score = self._score, None
        if score is not None:
            self._store.mark_best(saved, score)
        self._status["checkpoint_at"] = time.time()
        took = Histogram.of(BUCKETS_S, time.monotonic() - started)
        size = sum(path.stat().st_size for path in saved.iterdir())
        values: MetricMap = {"checkpoint_seconds": took, "checkpoint_bytes": Last(float(size))}
        self._reporter.emit({**values, "checkpoint_last_success_timestamp_seconds": Last(time.time())})

    def _flush(self) -> None:
        with contextlib.suppress(RoleGoneError):
            if self._weights.version() < self._published:  # the store was restarted and is empty: publish again
                self._published = NO_POLICY
        self._reporter.emit({**self._learner.drain_metrics(), **self._feed.gauges(), **gpu_metrics(self._device)})

    def _env_steps(self) -> int:
        return self._plan.env_steps_at(self._learner.replayed_steps)

    def _note(self, state: str) -> None:
        steps, replayed = self._learner.train_steps, self._learner.replayed_steps
        self._status.update(state=state, train_steps=steps, replayed_steps=replayed, version=tuple(self._learner.version))


def gpu_metrics(device: str) -> MetricMap:
    """Memory and utilization of a CUDA device; empty for a CPU, and without utilization where NVML is missing."""
    if not device.startswith("cuda"):
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    gpu = f"gpu={torch.device(device).index or 0}"
    values: MetricMap = {f"gpu_memory_used_bytes{{{gpu}}}": Last(float(total - free))}
    with contextlib.suppress(ImportError, RuntimeError):
        values[f"gpu_utilization_ratio{{{gpu}}}"] = Last(torch.cuda.utilization(device) / 100)
    return values


def choose_device(wanted: str) -> str:
    """``auto`` becomes cuda when there is one."""
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
