"""The run loop, the same in lock-step and on Ray: restore, work, look, evaluate, save, say, end.

    start  ->  [ work  ->  look, show, evaluate when due, save when due, say ]  until complete or
    stopped  ->  end (last rows, last checkpoint)  ->  last evaluation  ->  summary

What works, and where, is the :class:`Runtime`'s: that of ``worldloom_dist.lockstep`` makes every
decision and update in this thread, that of ``worldloom_dist.runtime.driver`` watches over processes
that do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from worldloom.core.exceptions import TrainingError
from worldloom_dist.run.console import PROGRESS, show_nothing
from worldloom_dist.run.evaluations import EvaluationRunner, Evaluations
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.outcome import (
    check_episodes,
    check_files_loaded,
    check_windows,
    shortfall,
)
from worldloom_dist.run.plan import Plan
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag
from worldloom_dist.run.view import View

__all__ = ["Run", "Runtime"]

logger = logging.getLogger(__name__)
Show = Callable[[Callable[[], View]], None]

SAY_EVERY_S = 10.0
SUMMARY_EVERY_S = 2.0
LEFT_AT_ONCE = "left at once"
"""Said of a run that is stopped without a last checkpoint, because its user cannot wait."""
PAUSES_OF_LAST_WRITE_S = (1.0, 2.0, 4.0, 8.0, 15.0)


class Runtime(Protocol):
    """The roles of one run, and how they are driven. Every method is called from the run's thread.

    Attributes:
        say_every_steps: Progress after which a record is due even if ten seconds have not passed;
            None for never.
    """

    say_every_steps: int | None

    @property
    def evaluator(self) -> EvaluationRunner:
        """Evaluates the newest weights."""

    @property
    def is_restored(self) -> bool:
        """True when the run is known to work: what a checkpoint holds has been loaded."""

    @property
    def num_windows(self) -> int | None:
        """Windows that replay has to sample from; None when that is not known."""

    @property
    def shard_counters(self) -> Mapping[str, Mapping[str, int]]:
        """Row counters by shard, for the next driver of the run; empty when it needs none."""

    @property
    def owes_update(self) -> bool:
        """True when stored steps ask for another update."""

    def start(self) -> None:
        """Build or start the roles."""

    def work(self) -> bool:
        """Do a part of the work, or let it be done for a moment; True when it is time to look."""

    def look(self) -> None:
        """Bring the report up to date."""

    def collect(self) -> None:
        """Bring the metrics of all roles into the report, before a record is written."""

    def save_when_due(self) -> None:
        """Write a checkpoint, where it is the driver's to write one."""

    def end(self) -> None:
        """Store what is open, write the last checkpoint and look.

        Raises:
            TrainingError: If there is no last checkpoint.
        """

    def rescue(self) -> None:
        """After a failure, save in a short time what can be saved."""

    def close(self) -> None:
        """Let go of everything."""


class Run:
    """One run.

    Args:
        plan: What runs.
        folder: Where it writes; of a run that goes on nothing in it changes before the run is
            restored.
        report: Its numbers.
        runtime: Its roles.
        stop: Asks it to checkpoint and leave.
        show: Shows a view to people.
        on_restored: Called when the run is known to work.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        report: Report,
        runtime: Runtime,
        stop: StopFlag,
        show: Show = show_nothing,
        on_restored: Callable[[], object] = lambda: None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.stop = stop
        self._show = show
        self._on_restored = on_restored
        self._is_restored = False
        self._earlier = folder.read_json("summary.json")
        self._summary_due = Interval(SUMMARY_EVERY_S)
        self._say_due = Interval(SAY_EVERY_S)
        self._said_at = 0
        self.report = report
        self.runtime = runtime
        self.evaluations = Evaluations(plan, report, runtime.evaluator)

    def run(self) -> str:
        """Run to the end.

        Returns:
            ``completed`` or ``stopped``.

        Raises:
            TrainingError: If the run cannot go on, or did not do what it was asked for;
                ``summary.json`` says so too.
        """
        self.write("running")
        ended = "failed"
        try:
            self.begin()
            while not self.is_complete() and not self.stop.is_set:
                self.turn()
            if self.stop.is_set:
                logger.info("stopping: %s; checkpointing first", self.stop.reason)
            status, missing = self.finish()
            ended = status if missing is None else "failed"
        except BaseException as error:
            ended = self.fail(error)
            raise
        finally:
            try:
                self.runtime.close()
            finally:
                self.report.close(ended)
        if missing is not None:
            raise TrainingError(missing)
        return status

    def begin(self) -> None:
        """Build or start the roles."""
        self.runtime.start()
        self._notice_restored()

    def turn(self) -> None:
        """A part of the work, and whatever is due after it."""
        is_whole = self.runtime.work()
        if is_whole:
            self._look()
        has_moved = (
            self.runtime.say_every_steps is not None
            and self.report.progress - self._said_at >= self.runtime.say_every_steps
        )
        if self._say_due.is_due() or has_moved:
            if not is_whole:  # a round that owes many updates is told of while it lasts
                self.runtime.look()
                self._show(self.report.view)
            self._say()

    def _look(self) -> None:
        """Read how far the run is, and do what is due then."""
        self.runtime.look()
        self._notice_restored()
        counts, windows = self.report.counts, self.runtime.num_windows
        if windows is not None:
            check_files_loaded(self.plan, counts.train_steps, windows, self.report.left_out)
            if not counts.train_steps:
                check_windows(self.plan, counts.counters.agent_steps, windows)
        if not self.plan.is_offline:
            check_episodes(
                self.plan,
                self.report.grown("agent_steps_total"),
                self.report.grown("episodes_total", reason="error"),
                self.report.grown("episodes_total"),
            )
        self._show(self.report.view)
        self.evaluations.look()
        self.runtime.save_when_due()
        if self._summary_due.is_due():
            self.write("running")

    def _notice_restored(self) -> None:
        if not self._is_restored and self.runtime.is_restored:
            self._is_restored = True
            self._on_restored()

    def is_complete(self) -> bool:
        """Enough steps are stored, and what they owe to training has been paid; without an env,
        enough updates are made.
        """
        if not self._is_restored or not self.plan.has_all_steps(self.report.counts):
            return False
        return self.plan.is_offline or not self.runtime.owes_update

    def finish(self) -> tuple[str, str | None]:
        """Leave in order; returns how the run ended, and what it did not do of what it was asked
        for.
        """
        is_complete = self.is_complete()
        self.runtime.end()
        is_complete = is_complete or self.is_complete()
        status = "completed" if is_complete else "stopped"
        missing = None
        if is_complete:
            counts = self.report.counts
            evaluation = self.evaluations.last(counts.policy_version, self.stop)
            if evaluation is None and self.plan.config.eval_episodes and self.stop.is_set:
                status = "stopped"
            else:
                failure = self.evaluations.failure
                missing = shortfall(self.plan, counts.train_steps, evaluation, failure)
        self._say()
        if missing is not None:
            self.write("failed", f"TrainingError: {missing}")
        else:
            self.write(status)
        return status, missing

    def _say(self) -> None:
        """A line for people, a record for programs."""
        self._said_at = self.report.progress
        self.runtime.collect()
        logging.getLogger(PROGRESS).info("%s", self.report.line())
        self.report.record()
        self._show(self.report.view)

    def fail(self, error: BaseException) -> str:
        """Save what can be saved, unless the user cannot wait, and say why the run ends. A run that
        could not go on stays as it was.

        Returns:
            The status that the run has now.
        """
        is_at_once = isinstance(error, KeyboardInterrupt)
        try:
            if not is_at_once:
                self.runtime.rescue()
        finally:
            if self._earlier and not self._is_restored:
                self.folder.try_write_summary(self._earlier)
                ended = str(self._earlier.get("status"))
            else:
                why = LEFT_AT_ONCE if is_at_once else f"{type(error).__name__}: {error}"
                ended = "stopped" if is_at_once else "failed"
                self.write(ended, why)
        return ended

    def write(self, status: str, error: str | None = None) -> None:
        """What the run is known to have, for people and for the next driver. A disk that is full
        ends the run only where it ends anyway, and not before it was given time to be emptied.
        """
        summary = self.report.summary(status, error)
        if status in ("completed", "stopped") and error is None:
            self._write_last(summary)
            return
        try:
            self._write_counters()
        except OSError as problem:
            logger.warning(
                "the counters of the replay are old, because they cannot be written (%s); free "
                "space",
                problem.strerror,
            )
        self.folder.try_write_summary(summary)

    def _write_last(self, summary: Mapping[str, Any]) -> None:
        """What a run ends with is worth waiting for; tried again for a while, with a warning."""
        pauses = iter(PAUSES_OF_LAST_WRITE_S)
        while True:
            try:
                self._write_counters()
                self.folder.write_summary(summary)
                return
            except OSError as problem:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                logger.warning(
                    "%s cannot be written (%s); free space: it is tried again in %.0f s",
                    self.folder.summary_path,
                    problem.strerror,
                    pause_s,
                )
            time.sleep(pause_s)

    def _write_counters(self) -> None:
        if counters := self.runtime.shard_counters:
            self.folder.write_counters(counters)
