"""Envs in processes of their own, with deadlines: one that hangs or dies costs itself only, and not
for long.

Who waits for whom: ``step`` asks every ready process and waits for their answers, for a grace in
which nearly every step is done. An env that takes longer is late: the others go on without it. Its
rows are not live and no action reaches it until its answer is there, which is then its next row,
reached by the action of its last one. A process that misses its deadline is killed (its stack goes
to the log first), one that died is noticed at once; both are started again after a pause that grows
(``envs.faults``). No one waits for a late process or a starting one unless there is no other, and
then for ``patience_s`` at most; a new env's rows are not live until its reset row is there.

A thread looks every second at the memory that the processes hold (``envs.memory``) and ends the
one that holds too much, which is noticed as a death.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing import connection
from typing import Any

import numpy as np

from worldloom.core.exceptions import StateError
from worldloom.core.memory import held_bytes, tree_of
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.faults import EnvFault, FailureTracker, FaultKind
from worldloom.envs.memory import LOOK_EVERY_S, MemoryWatch
from worldloom.envs.process import EnvProcess
from worldloom.envs.tasks import next_place
from worldloom.envs.vector import EnvStep, env_seed

__all__ = ["SupervisedVectorEnv"]

USUAL_STEPS = 10
STEPS_REMEMBERED = 32
"""An env is late after this multiple of the median of the last steps, if that is longer than
``EnvLimits.grace_s``.
"""


class _Phase(Enum):
    DOWN = "no process"
    STARTING = "process started, first row not here yet"
    BUSY = "asked, not answered"
    READY = "answered"


@dataclass
class _Slot:
    process: EnvProcess | None = None
    phase: _Phase = _Phase.DOWN
    asked_s: float = 0.0
    deadline_s: float = 0.0
    doing: str = "start"  # what the deadline is for: start (up to the first row), reset or step
    rebuilds: int = 0
    is_built: bool = False
    place: int = 0  # in the env's cycle of tasks: the one that is built, later the one played
    first_place: int = 0  # the one that is played first, once all is built


class SupervisedVectorEnv:
    """One supervised process per env (see :class:`worldloom.envs.vector.VectorEnv`).

    Args:
        config: Resolved settings.
        num_envs: How many.
        seed: Root of the envs' seeds.
        limits: Grace, deadlines, and failures that are borne.
        cycles: Of several tasks, those that each env plays in turn; empty for one task.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError, MissingDependencyError: If the env cannot be built at all.
        EnvFailureError: If every env fails too often while starting.
    """

    has_deadlines = True

    def __init__(
        self,
        config: EnvConfig,
        num_envs: int,
        seed: int,
        *,
        limits: EnvLimits | None = None,
        cycles: Sequence[Sequence[int]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._cycles = [tuple(cycle) for cycle in cycles]
        self._seed = seed
        self._clock = clock
        limits = limits or EnvLimits()
        self._timeouts = {
            "start": limits.start_timeout_s,
            "reset": limits.reset_timeout_s,
            "step": limits.step_timeout_s,
        }
        self._least_grace_s = limits.grace_s
        self._step_times = deque[float](maxlen=STEPS_REMEMBERED)
        self.patience_s = float("inf")
        self._book = FailureTracker(limits, num_envs, clock)
        self.slots = [_Slot() for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, bool)
        self._started = False
        self._spec: EnvSpec | None = None
        self.num_envs = num_envs
        self._closing = threading.Event()
        self._watch = MemoryWatch(
            None if limits.memory_gb is None else 1e9 * limits.memory_gb,
            limits.envs_here or num_envs,
        )
        threading.Thread(target=self._watch_memory, name="env-memory", daemon=True).start()
        try:
            for index in range(num_envs):
                self._launch(index)
            while self._spec is None:
                self._wait_once(None, [])
        except BaseException:
            self.close()
            raise
        self.spec: EnvSpec = self._spec
        self._blank: EnvStep = EnvStep.blank(self.spec, num_envs)

    @property
    def pids(self) -> list[int | None]:
        """Process of each env, None where there is none now."""
        return [slot.process.pid if slot.process else None for slot in self.slots]

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere (see :class:`worldloom.envs.vector.VectorEnv`).

        Waits for every env; the first time, with a finite ``patience_s``, not for those that are
        late, as :meth:`step`.
        """
        if seed is not None:
            self._seed = seed
            for slot in self.slots:
                slot.rebuilds = 0
        while any(slot.phase is _Phase.BUSY for slot in self.slots):
            self._wait_once(self._blank.copy(), [])  # late answers, of episodes that end here
        reseed = seed is not None or not self._started
        for index, slot in enumerate(self.slots):
            if slot.phase is _Phase.READY or not self._started:
                self.ask(index, "reset", env_seed(self._seed, index) if reseed else None)
        self._started = True
        return self._collect(float("inf") if self.patience_s == float("inf") else self._grace_s())

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Act (see :class:`worldloom.envs.vector.VectorEnv`)."""
        if not self._started:
            raise StateError("step was called before reset")
        for index, slot in enumerate(self.slots):
            if slot.phase is _Phase.READY and self._ended[index]:
                self.ask(index, "reset", None)
            elif slot.phase is _Phase.READY:
                self.ask(index, "step", {key: value[index] for key, value in action.items()})
        return self._collect(self._grace_s())

    def state(self) -> list[Any] | None:
        """None: exact resume is for envs in this process."""
        return None

    def set_state(self, state: Sequence[Any]) -> None:
        """Never succeeds.

        Raises:
            StateError: Always.
        """
        raise StateError(
            "envs in processes of their own cannot be resumed exactly; use envs in this process"
        )

    def drain_faults(self) -> list[EnvFault]:
        """Failures since the last call."""
        return self._book.drain()

    def close(self) -> None:
        """End every process."""
        self._closing.set()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
            slot.process = None
            slot.phase = _Phase.DOWN

    def _watch_memory(self) -> None:
        """In a thread of its own. At most one env is ended per look, the largest: that may be
        enough.
        """
        largest: EnvProcess | None = None

        def tree_of_largest() -> list[int]:
            nonlocal largest
            processes = [slot.process for slot in self.slots]
            trees = {process: tree_of(process.pid) for process in processes if process is not None}
            largest = max(trees, key=lambda one: held_bytes(trees[one]), default=None)
            return [] if largest is None else trees[largest]

        while not self._closing.wait(LOOK_EVERY_S):
            verdict = self._watch.complaint(tree_of_largest)
            if verdict and largest is not None and not self._closing.is_set():
                largest.condemn(verdict)

    def _collect(self, grace_s: float) -> EnvStep:
        """The rows of the envs that answer within ``grace_s``, and of one at least that does within
        ``patience_s``.
        """
        row = self._blank.copy()
        give_up = self._clock() + self.patience_s
        self._relaunch_due()
        while (patience := self._patience(grace_s)) or not (
            row.live.any() or self._clock() >= give_up
        ):
            self._wait_once(row, patience or [give_up - self._clock()])
        self._receive_ready(row, 0.0)
        self.end_hung()
        self._ended = row.is_last
        return row

    def _grace_s(self) -> float:
        times = sorted(self._step_times)
        return max(self._least_grace_s, USUAL_STEPS * times[len(times) // 2] if times else 0.0)

    def _patience(self, grace_s: float) -> list[float]:
        """Seconds until each env that is asked and not yet late will be."""
        now = self._clock()
        left = [slot.asked_s + grace_s - now for slot in self.slots if slot.phase is _Phase.BUSY]
        return [seconds for seconds in left if seconds > 0]

    def _wait_once(self, row: EnvStep | None, patience: list[float]) -> None:
        """Wait for the next answer, deadline, end of a pause or of patience, and deal with it."""
        now = self._clock()
        times = [
            slot.deadline_s - now
            for slot in self.slots
            if slot.phase in (_Phase.BUSY, _Phase.STARTING)
        ] + patience
        times += [
            self._book.wait_s(index)
            for index, slot in enumerate(self.slots)
            if slot.phase is _Phase.DOWN
        ]
        self._receive_ready(row, max(0.0, min(times)))
        self.end_hung()
        self._relaunch_due()

    def end_hung(self) -> None:
        """End the processes that have not answered in time."""
        now = self._clock()
        for index, slot in enumerate(self.slots):
            if slot.phase in (_Phase.BUSY, _Phase.STARTING) and now >= slot.deadline_s:
                assert slot.process is not None
                # else it has answered, and no one had time to look
                if not slot.process.connection.poll():
                    self._on_hang(index)

    def _receive_ready(self, row: EnvStep | None, timeout_s: float) -> None:
        waiting = {
            slot.process.connection: index
            for index, slot in enumerate(self.slots)
            if slot.process is not None and slot.phase in (_Phase.BUSY, _Phase.STARTING)
        }
        if not waiting:
            time.sleep(timeout_s)
            return
        for ready in connection.wait(list(waiting), timeout_s):
            self._receive(waiting[ready], row)  # type: ignore[index]

    def _receive(self, index: int, row: EnvStep | None) -> None:
        slot = self.slots[index]
        assert slot.process is not None
        try:
            kind, *content = slot.process.answer()
        except (EOFError, OSError):
            how = slot.process.how_it_died()
            verdict = slot.process.verdict
            self._fail(index, "memory" if verdict else "died", self._told(index, verdict or how))
            return
        if kind == "refused":
            raise content[0]
        if kind == "fault":
            self._fail(index, "raised", content[0])
        elif kind == "spec":
            self._spec = content[0]
            slot.is_built = True
            slot.place = slot.first_place
        else:
            assert row is not None
            obs, reward, terminated, truncated = content
            if slot.doing == "step":
                self._step_times.append(self._clock() - slot.asked_s)
                row.put(index, obs, reward, terminated, truncated)
            else:
                row.put_first(index, obs)
            slot.phase = _Phase.READY

    def _on_hang(self, index: int) -> None:
        slot = self.slots[index]
        assert slot.process is not None
        slot.process.kill_hung()
        why = f"{slot.doing} took longer than {self._timeouts[slot.doing]:g} s"
        self._fail(index, "hung", self._told(index, why))

    def _told(self, index: int, why: str) -> str:
        """What happened to a process, with the task that it played: it cannot say so any more."""
        return f"task {self._task_of(index)!r}: {why}" if self._cycles else why

    def _task_of(self, index: int) -> str:
        return list(self._config.tasks)[self._cycles[index][self.slots[index].place]]

    def _fail(self, index: int, kind: FaultKind, detail: str) -> None:
        slot = self.slots[index]
        if slot.process is not None:
            slot.process.kill()
        slot.process = None
        slot.phase = _Phase.DOWN
        if not self._cycles:
            self._book.record(index, kind, detail)
            return
        cycle = self._cycles[index]
        played = self._task_of(index)
        lost = self._book.record(index, kind, detail, played, plays_others=len(cycle) > 1)
        if lost:
            names = list(self._config.tasks)
            self._cycles[index] = tuple(task for task in cycle if names[task] != lost)

    def _relaunch_due(self) -> None:
        for index, slot in enumerate(self.slots):
            if slot.phase is _Phase.DOWN and self._book.wait_s(index) == 0:
                slot.rebuilds += 1
                self._launch(index)
                if self._started and slot.process is not None:
                    seed = env_seed(self._seed, index, slot.rebuilds)
                    slot.process.ask(("reset", seed))
                    self._note_turn(index, seed)

    def _launch(self, index: int) -> None:
        slot = self.slots[index]
        slot.process = EnvProcess(self._config, self._cycles[index] if self._cycles else ())
        slot.phase = _Phase.STARTING
        slot.is_built = False
        slot.place = slot.first_place = 0
        self._set_deadline(slot, "start")

    def ask(self, index: int, request: str, argument: Any) -> None:
        """Hand an env's process a request; one that has no process is left alone."""
        slot = self.slots[index]
        if slot.process is None:
            return
        slot.process.ask((request, argument))
        if request == "reset":
            self._note_turn(index, argument)
        slot.asked_s = self._clock()
        if slot.phase is not _Phase.STARTING:
            self._set_deadline(slot, request)
        slot.phase = _Phase.BUSY

    def _note_turn(self, index: int, seed: int | None) -> None:
        """Whose turn it is with a reset that was asked for, as its process sees it."""
        if not self._cycles:
            return
        slot = self.slots[index]
        slot.first_place = next_place(self._cycles[index], slot.place, seed)
        if slot.is_built:
            slot.place = slot.first_place

    def _set_deadline(self, slot: _Slot, doing: str) -> None:
        slot.doing = doing
        slot.deadline_s = self._clock() + self._timeouts[doing]
