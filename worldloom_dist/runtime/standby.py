"""The standby learner, as the driver sees it: one is kept warm behind the learner, and takes its
place when that dies.

    learner  --ping: where its mirror is--> driver --follow--> standby      (StandbyKeeper.look)
    learner dies -> its process is gone for good -> take_over -> the standby is the learner
                    -> once it trains, a new standby is started              (StandbyKeeper.take)

No state passes through the driver. A standby publishes, saves and asks for nothing before it is
told to take over, and it is not told before the process of the former learner has ended: one that
was only stopped cannot come back.

Called by the driver's thread only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from worldloom.core.memory import memory_left
from worldloom_dist.interfaces import Learner
from worldloom_dist.rpc.actor_client import submit
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.server_watch import lives
from worldloom_dist.runtime.supervisor import Role, Supervisor

__all__ = ["StandbyKeeper", "end_process"]

logger = logging.getLogger(__name__)

KIND = "standby"
READY = "standby"
"""What a standby that has built everything says of its state."""
TITLE = "ray::LearnerRole"
SPARE_BYTES = 1e9
"""Of memory, beside a standby: what the run and others may still come to need."""


class StandbyKeeper:
    """Keeps a standby behind the learner.

    Args:
        supervisor: Of the run's roles; the standby is one of them.
        start: Starts the actor of a standby, under a name.
        is_wanted: False where the run keeps none.
        end: Ends the process of a former learner, and waits until it is gone; False if it was not.
        checks_memory: Keep none where a second learner would not fit.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        start: Callable[[str], Any],
        *,
        is_wanted: bool,
        end: Callable[[int], bool] | None = None,
        checks_memory: bool = False,
    ) -> None:
        self._supervisor = supervisor
        self._start = start
        self._is_wanted = is_wanted
        self._end = end or end_process
        self._checks_memory = checks_memory
        self._started = 0
        self._told: Any = None
        self._is_said = False

    @property
    def role(self) -> Role | None:
        """The present standby."""
        return next(iter(self._supervisor.of_kind(KIND)), None)

    def look(self, has_room: bool) -> None:
        """Start one when the learner trains, and tell it what to follow.

        Args:
            has_room: True when nothing else that was started is still coming up.
        """
        learner = self._learner()
        if not self._is_wanted or learner is None or not learner.is_up:
            return
        standby = self.role
        if standby is None:
            if has_room and learner.status.get("state") == "training" and self._fits(learner):
                self._add()
            return
        is_ready = standby.status.get("state") == READY and "follows" in standby.status
        if is_ready and not self._is_said:
            self._is_said = True
            logger.info("%s is ready to go on in the place of learner-0", standby.name)
        told = (standby.handle, learner.status.get("mirror"))
        if standby.is_up and told[1] is not None and told != self._told:
            self._told = told
            submit(standby.handle, Learner.follow, told[1])

    def take(self, incarnation: int) -> Any:
        """The handle of a standby that is the learner from now on, once it has built everything;
        None where there is none, or the former learner's process would not end.

        Args:
            incarnation: Of the learner that it becomes.
        """
        standby = self.role
        learner = self._learner()
        if standby is None or learner is None or not standby.is_up:
            return None
        former = learner.status.get("pid")
        if former is not None and not self._end(int(former)):
            logger.warning("process %d of the former learner does not end", former)
            return None
        self._supervisor.forget(standby)
        handle = standby.handle
        submit(handle, Learner.take_over, incarnation)
        logger.info("%s goes on in the place of learner-0", standby.name)
        return handle

    def _learner(self) -> Role | None:
        return next(iter(self._supervisor.of_kind("learner")), None)

    def _fits(self, learner: Role) -> bool:
        """False, and said once, where a second process of the learner's size does not fit now that
        all others are up.
        """
        if not self._checks_memory:
            return True
        left = memory_left()
        with contextlib.suppress(psutil.Error):
            pid = int(learner.status.get("pid", os.getpid()))
            size = psutil.Process(pid).memory_info().rss
            if left < size + SPARE_BYTES:
                logger.warning(
                    "no standby learner: it takes as much memory as the learner (%.1f GB), and "
                    "%.1f GB are left",
                    size / 1e9,
                    left / 1e9,
                )
                self._is_wanted = False
                return False
        return True

    def _add(self) -> None:
        index = self._started
        self._started += 1
        self._is_said = False
        self._supervisor.add(
            Role(
                KIND,
                index,
                lambda _: self._start(f"{KIND}-{index}"),
                run_forever=Learner.stand_by,
                is_vital=False,
                ping_timeout_s=DEADLINES.ping_learner_s,
            )
        )


def end_process(pid: int) -> bool:
    """Kill a learner's process of this machine, also one that is stopped, and wait until it has
    ended; False if it had not in time.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if not " ".join(process.cmdline()).startswith(TITLE):
            return True  # the number belongs to another process now
        process.kill()
        give_up = time.monotonic() + DEADLINES.former_learner_s
        while lives(process):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.005)
    return True
