"""What went wrong with which env, when it may be built again, and when we stop trying."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worldloom.core.backoff import Backoff
from worldloom.core.exceptions import EnvFailureError
from worldloom.envs.config import EnvLimits

__all__ = ["EnvFault", "FailureTracker", "FaultKind"]

logger = logging.getLogger(__name__)

FaultKind = Literal["raised", "hung", "died", "memory"]
SAYS = {"memory": "was ended for its memory"}


@dataclass(frozen=True, slots=True)
class EnvFault:
    """One failure of one env.

    Attributes:
        env: Index of the env in its vector.
        kind: ``raised`` (an exception, a NaN, a wrong shape), ``hung`` (a deadline passed),
            ``died`` (its process ended), ``memory`` (it held too much and was ended).
        detail: What happened, in one line.
        is_quarantined: True when this failure was one too many: the env is not built again.
        lost_task: The one of several tasks that the env leaves out from now on instead, and goes
            on with the others; else empty.
    """

    env: int
    kind: FaultKind
    detail: str
    is_quarantined: bool
    lost_task: str = ""


class FailureTracker:
    """Counts failures per env within a window; owned and used by one thread.

    Args:
        limits: Window, back-off and number of failures.
        num_envs: Envs in the vector.
        clock: Monotonic seconds.
    """

    def __init__(
        self, limits: EnvLimits, num_envs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._backoff = Backoff(limits.backoff_s, limits.max_backoff_s)
        self._clock = clock
        self._failures: list[deque[tuple[float, str]]] = [deque() for _ in range(num_envs)]
        self._faults: list[EnvFault] = []
        self._quarantined: dict[int, EnvFault] = {}
        self._due_s = [0.0] * num_envs
        self._last_detail = ""

    def record(
        self, env: int, kind: FaultKind, detail: str, task: str = "", *, plays_others: bool = False
    ) -> str:
        """Enter a failure and set when the env may be built again.

        Args:
            env, kind, detail: As in :class:`EnvFault`.
            task: Of several, the one that was played.
            plays_others: True when the env plays others, too: where it fails too often it leaves
                out the one that failed most, and only where there is no other goes into quarantine.

        Returns:
            The task that is left out from now on; empty for none.

        Raises:
            EnvFailureError: If this was the last env that was not in quarantine.
        """
        now = self._clock()
        failures = self._failures[env]
        while failures and now - failures[0][0] > self._limits.failure_window_s:
            failures.popleft()
        failures.append((now, task))
        count = len(failures)
        is_too_often = count >= self._limits.max_failures
        lost_task = ""
        if is_too_often and plays_others:
            lost_task = Counter(name for _, name in failures).most_common(1)[0][0]
            failures.clear()
        fault = EnvFault(env, kind, detail, is_too_often and not plays_others, lost_task)
        self._faults.append(fault)
        if fault.is_quarantined:
            self._quarantined[env] = fault
        self._due_s[env] = now + self._backoff.pause_after_s(len(failures))
        end = ", in quarantine now" if fault.is_quarantined else ""
        if lost_task:
            end = f", goes on without task {lost_task!r}"
        is_known = detail == self._last_detail and not end
        logger.log(
            logging.DEBUG if is_known else logging.WARNING,
            "env %d %s (failure %d in the window)%s: %s",
            env,
            SAYS.get(kind, kind),
            count,
            end,
            "as before" if detail == self._last_detail else detail,
        )
        self._last_detail = detail
        if len(self._quarantined) == len(self._failures):
            raise EnvFailureError(
                f"no env is left of {len(self._failures)}; the last failure: env {env} "
                f"{SAYS.get(kind, kind)}: {detail}"
            )
        return lost_task

    def is_quarantined(self, env: int) -> bool:
        """True when the env is not built again."""
        return env in self._quarantined

    def wait_s(self, env: int) -> float:
        """Seconds until the env may be built again; 0 when it may now, infinite in quarantine."""
        return (
            float("inf") if env in self._quarantined else max(0.0, self._due_s[env] - self._clock())
        )

    @property
    def quarantined(self) -> dict[int, EnvFault]:
        """The envs in quarantine, with the failure that put them there."""
        return dict(self._quarantined)

    def drain(self) -> list[EnvFault]:
        """The failures since the last call."""
        faults = self._faults
        self._faults = []
        return faults
