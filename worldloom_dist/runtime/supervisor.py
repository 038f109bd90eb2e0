"""Keeps the roles of a run alive: notices death at once and hangs by deadline, restarts with
back-off, and gives up in time.

Ray notices that a process died, but not that it hangs, and restarts without pause or limit; so
restarting is ours. Every role has a run_forever, a call that returns only when the role ends, whose
failure says at once that the process died. Roles also answer a ping from a thread of their own; one
that stays silent past its deadline is killed and then treated like one that died.

Called by the driver's thread only.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from worldloom.core.backoff import Backoff
from worldloom.core.error_text import last_line
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, TrainingError
from worldloom_dist.interfaces import Process, Stoppable
from worldloom_dist.rpc.actor_client import submit
from worldloom_dist.runtime.deadlines import DEADLINES

__all__ = ["Role", "Supervisor", "start_actor"]

logger = logging.getLogger(__name__)

PING_EVERY_S = 2.0
PAUSES = Backoff(first_s=0.5, longest_s=30.0)
"""Before a role that dies again and again is started again."""
STEADY_S = 5.0
SLOW_START_S = 30.0
MAX_VAIN_STARTS = 3
"""How often in a row a process may take longer than that, or a deadline, and not have worked for
``STEADY_S`` then: twenty such starts would take an hour.
"""
MAX_QUICK_ENV_LOSSES = 3
"""How often in a row a role may lose all its envs within ``STEADY_S``: each of them has been
rebuilt in the process that ended, so a new process does not help."""
PINGS_PER_S = 16.0
"""Pings of all roles together; with more roles each of them is asked less often."""
STOOD_STILL_S = 20.0
"""Between two looks; longer than any call of the driver keeps it from the next one."""


@dataclass
class Role:
    """One instance of a role.

    Attributes:
        kind, index: For example ``shard``, 0.
        start: Makes the actor of a given incarnation and returns its handle.
        run_forever: The method of its Protocol that lasts as long as the role does.
        incarnation: Of the present process; rises with every restart.
        ping_timeout_s: Silence after which it counts as hanging.
        start_timeout_s: Likewise while it starts.
        is_vital: True when the run cannot go on once this role is given up.
        on_down: Called when the process is found dead or has left.
        group: Roles with the same group name live and die together: when one dies, all are started
            again, and it counts once.
        has_been_up: True once a process of it has answered.
        is_leaving: True when it was asked to end for good.
        last_failure: Why its process was last replaced.
    """

    kind: str
    index: int
    start: Callable[[int], Any]
    run_forever: Callable[[Any], Any]
    incarnation: int = 0
    ping_timeout_s: float = DEADLINES.ping_s
    start_timeout_s: float = DEADLINES.start_s
    is_vital: bool = True
    on_down: Callable[[], None] = lambda: None
    group: str = ""
    handle: Any = None
    line: Any = None
    status: dict[str, Any] = field(default_factory=dict)
    is_done: bool = False
    is_given_up: bool = False
    is_leaving: bool = False
    last_failure: str = ""
    ready_at: float | None = None
    has_been_up: bool = False
    _ping: Any = None
    _leave_by: float | None = None
    _asked_at: float = 0.0
    start_at: float = 0.0
    started_at: float = 0.0
    _heard_at: float = 0.0
    _worked_s: float = 0.0
    _quick_deaths: int = 0
    _vain_starts: int = 0
    deaths: deque[float] = field(default_factory=deque)

    @property
    def name(self) -> str:
        """The actor's name."""
        return f"{self.kind}-{self.index}"

    @property
    def is_up(self) -> bool:
        """True while there is a process that has answered."""
        return self.handle is not None and self.ready_at is not None

    @property
    def is_missing(self) -> bool:
        """True while it is wanted and not up."""
        return not (self.is_up or self.is_done or self.is_given_up)


def start_actor(
    kind: type, name: str, *args: Any, options: Mapping[str, Any], threads: int = 0
) -> Any:
    """Start a role: named, never restarted or retried by Ray, because that is the supervisor's
    work.

    Args:
        kind: Its class.
        name: Its name in the run's namespace.
        args: Of its constructor.
        options: Where it goes, as Ray's options.
        threads: Calls at the same time; 0 for a role on an event loop, where everything that waits
            does so inside.
    """
    fixed = {
        "name": name,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": threads or 10_000,
    }
    return ray.remote(kind).options(**fixed, **options).remote(*args)


class Supervisor:
    """Starts roles and keeps them up.

    Args:
        max_restarts: Of one role within ``window_s``; one more and it is given up.
        window_s: Seconds of work after which a restart is forgotten; time in which a role starts
            or hangs is none.

    Attributes:
        restarts: Restarts so far, by kind.
    """

    def __init__(self, *, max_restarts: int, window_s: float) -> None:
        self.roles: dict[str, Role] = {}
        self.restarts: Counter[str] = Counter()
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._looked_at = time.monotonic()

    def add(self, role: Role) -> None:
        """Start a role and keep it up from now on."""
        self.roles[role.name] = role
        self.start_role(role)

    def of_kind(self, kind: str) -> list[Role]:
        """The roles of one kind."""
        return [role for role in self.roles.values() if role.kind == kind]

    def poll(self, timeout_s: float) -> None:
        """Look after every role once, waiting up to ``timeout_s`` for something to happen.

        Raises:
            TrainingError: If a vital role was given up.
        """
        by_line = {role.line: role for role in self.roles.values() if role.line is not None}
        # the first death ends the wait
        ended, _ = ray.wait(list(by_line), timeout=timeout_s) if by_line else ([], [])
        for line in ended:
            if by_line[line].line is line:  # else its group was restarted a moment ago
                self.ended(by_line[line])
        now = time.monotonic()
        self._forgive_own_stillness(now)
        for role in list(self.roles.values()):
            if (
                role.handle is None
                and not (role.is_given_up or role.is_done)
                and now >= role.start_at
            ):
                self.start_role(role)
            elif role.handle is not None and role._leave_by is not None and now > role._leave_by:
                self._left(role)
            elif role.handle is not None:
                self.check_ping(role, now)

    def _forgive_own_stillness(self, now: float) -> None:
        """When this process was stopped for a while (Ctrl-Z, a batch system that suspends it), no
        one was silent: answers are on their way, or the roles were stopped, too.
        """
        if now - self._looked_at > STOOD_STILL_S:
            for role in self.roles.values():
                role._asked_at = now
                if role._leave_by is not None:
                    role._leave_by = now + DEADLINES.leave_s
        self._looked_at = now

    def forget(self, role: Role) -> None:
        """Look after a role no more; its process goes on."""
        del self.roles[role.name]

    def retire(self, role: Role) -> None:
        """Ask a role to end for good; it is forgotten when it has."""
        role.is_leaving = True
        if role.handle is None:
            del self.roles[role.name]
            return
        self.move(role)

    def move(self, role: Role) -> None:
        """Ask a role to end what it does and begin again in a new process, elsewhere if Ray finds a
        better place.
        """
        if role._leave_by is None and role.handle is not None:
            role._leave_by = time.monotonic() + DEADLINES.leave_s
            submit(role.handle, Stoppable.stop)

    def stop(
        self, kinds: tuple[str, ...], timeout_s: float, *, ends_processes: bool = True
    ) -> dict[str, Any]:
        """Ask roles to end, wait, and kill those that do not.

        Args:
            kinds: Of the roles.
            timeout_s: How long to wait for all of them.
            ends_processes: False keeps the process of a role that has ended, so that it can still
                be called.

        Returns:
            What the roles that ended by themselves returned, by name.
        """
        roles = [role for kind in kinds for role in self.of_kind(kind)]
        for role in roles:
            role.is_done = True
            if role.handle is not None:
                submit(role.handle, Stoppable.stop)
        names = {role.line: role.name for role in roles if role.line is not None}
        ended = ray.wait(list(names), num_returns=len(names), timeout=timeout_s)[0] if names else []
        results = {}
        for line in ended:
            try:
                results[names[line]] = ray.get(line)
            except RayError as error:
                logger.warning(
                    "%s failed while it was stopped: %s",
                    names[line],
                    last_line(error),
                )
        self.hear(kinds)
        for role in roles:
            if ends_processes or role.name not in results:
                self._kill(role)
        return results

    def start_again(self, kind: str) -> None:
        """Have roles up again that were stopped; in new processes, at the next poll."""
        for role in self.of_kind(kind):
            self._kill(role)
            self.restarts[kind] += 1
            role.incarnation += 1
            role.is_done = False
            role.start_at = time.monotonic()

    def hear(self, kinds: tuple[str, ...]) -> None:
        """Ask roles for their status now, and pass on what they have said since their last ping:
        there may be no next one.
        """
        asked = {
            submit(role.handle, Process.ping): role
            for kind in kinds
            for role in self.of_kind(kind)
            if role.is_up
        }
        if not asked:
            return
        for ping in ray.wait(list(asked), num_returns=len(asked), timeout=DEADLINES.hear_s)[0]:
            with contextlib.suppress(RayError):
                asked[ping].status = ray.get(ping) or {}
                self._pass_on(asked[ping], asked[ping].status)

    def start_role(self, role: Role) -> None:
        """Start its process, or try again soon while the name of the dead one is taken."""
        try:
            role.handle = role.start(role.incarnation)
        except ConfigurationError as error:
            if role.has_been_up:
                raise TrainingError(f"{role.name} cannot be started again: {error}") from error
            raise
        except ValueError:  # the name of the dead actor is not free yet
            role.start_at = time.monotonic() + 0.1
            return
        role.line = submit(role.handle, role.run_forever)
        role._ping = submit(role.handle, Process.ping)
        role._asked_at = role.started_at = time.monotonic()
        role.ready_at = None

    def ended(self, role: Role) -> None:
        """Its main call is over: it is done, or it has died."""
        try:
            result = ray.get(role.line)
            is_preempted = isinstance(result, dict) and result.get("is_preempted")
            if role._leave_by is not None or is_preempted:
                role.status |= {"open_rows": result["open_rows"], "left_with": result}
                if role._leave_by is None and not _is_steady(role):
                    self.died(role, "it was sent SIGTERM as soon as it had begun")
                else:
                    self._left(role)
            else:
                role.is_done = True
                role.line = None
        except RayActorError as error:
            self.died(role, f"its process died ({last_line(error)[:200]})")
        except RayTaskError as error:
            if isinstance(error, TrainingError):
                # starting it again would not help, and once is enough to say so
                role.line = None
                role.is_done = True
                raise TrainingError(str(error.cause)) from error
            if isinstance(error, EnvFailureError):  # says itself what the env did
                self.died(role, str(error.cause), has_lost_envs=True)
                return
            logger.error("%s failed:\n%s", role.name, error)
            self.died(role, f"it raised {type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            self.died(role, f"it was lost ({last_line(error)[:200]})")

    def check_ping(self, role: Role, now: float) -> None:
        """Ask how it is when that is due, and end it when it has been silent for too long."""
        if role._ping is None:
            if now - role._asked_at >= max(PING_EVERY_S, len(self.roles) / PINGS_PER_S):
                role._ping = submit(role.handle, Process.ping)
                role._asked_at = now
            return
        answered, _ = ray.wait([role._ping], timeout=0)
        deadline = role.ping_timeout_s if role.ready_at is not None else role.start_timeout_s
        if not answered:
            if now - role._asked_at > deadline:
                self.died(role, f"it did not answer for {deadline:.0f} s", by_deadline=True)
            return
        try:
            role.status = ray.get(role._ping) or {}
            if role.ready_at is not None:
                role._worked_s += max(0.0, now - role._heard_at)
            role._heard_at = now
            if not role.status.get("reading"):  # which counts as life, and as no work
                role.ready_at = role.ready_at or now
                role.has_been_up = True
        except RayActorError:
            return  # the run_forever says so too, with the reason
        except RayError as error:
            self.died(role, f"its ping failed ({last_line(error)[:200]})")
            return
        finally:
            role._ping = None
        self._pass_on(role, role.status)
        stuck = role.status.get("stuck")
        if stuck:
            if role.status.get("stack"):
                logger.warning("%s hangs; its stack:\n%s", role.name, role.status["stack"])
            role._worked_s -= min(role._worked_s, float(role.status.get("seconds", 0.0)))
            if role.status.get("doing") == "starting":
                role.ready_at = None  # it answered, and never began to work
            self.died(role, stuck, by_deadline=True)

    def _pass_on(self, role: Role, status: dict[str, Any]) -> None:
        for level, line in status.pop("said", ()):
            logger.log(level, "%s%s", "" if line.startswith(role.name) else f"{role.name}: ", line)

    def _left(self, role: Role) -> None:
        """A role that was asked to leave, or whose machine goes, has ended (or did not in time)."""
        self._kill(role)
        role._leave_by = None
        role.on_down()
        if role.is_leaving:
            del self.roles[role.name]
        elif not role.is_done:
            logger.warning("%s has left its machine; starting it again", role.name)
            self.restarts[role.kind] += 1
            role.incarnation += 1
            role.start_at = time.monotonic()

    def died(
        self, role: Role, reason: str, *, has_lost_envs: bool = False, by_deadline: bool = False
    ) -> None:
        """Start it again, or give it up."""
        was_steady = _is_steady(role)
        self._kill(role)
        if role.is_done:
            return
        role.last_failure = reason
        if role._leave_by is not None:
            self._left(role)
            return
        now = time.monotonic()
        role.deaths.append(role._worked_s)
        while role._worked_s - role.deaths[0] > self._window_s:
            role.deaths.popleft()
        is_slow = by_deadline or now - role.started_at > SLOW_START_S
        role._vain_starts = 0 if was_steady else role._vain_starts + is_slow
        role.on_down()
        # one that had worked for a while does not wait
        role._quick_deaths = 1 if was_steady else role._quick_deaths + 1
        is_hopeless = has_lost_envs and role._quick_deaths > MAX_QUICK_ENV_LOSSES
        is_vain = role._vain_starts > MAX_VAIN_STARTS
        if is_hopeless or is_vain or len(role.deaths) > self._max_restarts:
            role.is_given_up = True
            text = (
                f"{role.name} is given up after {len(role.deaths) - 1} restarts in "
                f"{self._window_s:.0f} s; the last time {reason}"
            )
            if role.is_vital:
                raise TrainingError(text)
            logger.error("%s", text)
            return
        pause = PAUSES.pause_after_s(role._quick_deaths)
        logger.warning(
            "%s: %s; starting it again%s", role.name, reason, f" in {pause:.1f} s" if pause else ""
        )
        self.restarts[role.kind] += 1
        for member in [role, *self._companions(role)]:
            self._kill(member)
            member.incarnation += 1
            member.start_at = now + pause

    def _companions(self, role: Role) -> list[Role]:
        return [
            r
            for r in self.roles.values()
            if r is not role and role.group and r.group == role.group and not r.is_done
        ]

    def _kill(self, role: Role) -> None:
        if role.handle is not None:
            ray.kill(role.handle, no_restart=True)
        role.handle = role.line = role._ping = role.ready_at = None


def _is_steady(role: Role) -> bool:
    """It has worked for a while: what ends it now says little of the next start."""
    return role.ready_at is not None and time.monotonic() - role.ready_at >= STEADY_S
