"""The env worker: steps its envs, stores every row, and does nothing else.

    obs --act--> action --env.step--> obs
    (obs, action, reward, flags, extras) --StreamWriter--> ReplayWriter

One ``step()`` is one decision of every env. The caller (a loop on Ray, the lock-step runtime)
decides how often. It waits for the policy, the envs and the acknowledgement of chunks (of a
stream's last one when its next one is closed, see ``stream_writer``), each bounded by a deadline of
its owner; nothing is dropped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from worldloom.core.exceptions import EnvFailureError, StateError, TrainingError
from worldloom.core.metrics import HistogramBuilder, MetricMap, Sum, merge_into
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ACTION, OBS, TASK, ArraySpec, all_finite, column_name
from worldloom.envs.building import FOREIGN_ERRORS, error_text
from worldloom.envs.vector import EnvStep, RandomActions, VectorEnv
from worldloom_dist.actors.acting import ActClient, Actions, check_actions
from worldloom_dist.actors.step_budget import StepBudget
from worldloom_dist.actors.stream_writer import StreamWriter
from worldloom_dist.metrics.names import BUCKETS_S, key_of
from worldloom_dist.ports import ReplayWriter

__all__ = ["EpisodeResult", "RolloutWorker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One episode that ended.

    Attributes:
        episode_return: Sum of its rewards.
        length: Decisions.
        reason: ``terminated``, ``truncated``, or ``error`` when the env failed.
        task: Of several, the one that was played.
    """

    episode_return: float
    length: int
    reason: str
    task: str = ""

    def to_fact(self) -> dict[str, Any]:
        """As the metrics hub takes it."""
        fact = {"return": self.episode_return, "length": self.length, "reason": self.reason}
        return fact | {"task": self.task} if self.task else fact


class RolloutWorker:
    """A worker with N envs; used by one thread.

    Args:
        slot: Which worker of the run.
        incarnation: How often it was started; rows of another incarnation belong to other streams.
        env: Makes the envs.
        acting: The policy, near or far.
        writer: Where chunks go.
        columns: Columns of a row, the agent's extras included.
        seed: Of the random actions.
        chunk_rows, max_chunk_age_s: When a chunk is closed.
        random_prefill: Act at random until ``may_use_policy``; otherwise the policy acts from the
            start.
        may_use_policy: Asked before every step until it says yes; by default, whether weights have
            arrived.
        first_env: Number of the first env in the names of the streams, for a group of a worker's
            envs.
        budget: Asked before every decision whether its steps may be made; None where the caller
            knows.
        clock: Monotonic seconds.

    Attributes:
        agent_steps, rows: Decisions whose result was written, and rows written.
        quarantined: Envs that failed too often and are not built again, with the last failure.
        lost_tasks: Likewise the tasks that an env leaves out, by env and name.
    """

    def __init__(
        self,
        slot: int,
        incarnation: int,
        *,
        env: Callable[[], VectorEnv],
        acting: ActClient,
        writer: ReplayWriter,
        columns: Mapping[str, ArraySpec],
        seed: int,
        chunk_rows: int = 64,
        max_chunk_age_s: float = 1.0,
        random_prefill: bool = True,
        may_use_policy: Callable[[], bool] | None = None,
        first_env: int = 0,
        budget: StepBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self.first_env = first_env
        self._acting = acting
        self._clock = clock
        self.env = env()
        self.spec = self.env.spec
        self.num_envs = self.env.num_envs
        self._writers = [
            StreamWriter(
                StreamId(slot, incarnation, first_env + index),
                columns,
                writer,
                chunk_rows=chunk_rows,
                max_age_s=max_chunk_age_s,
                clock=clock,
            )
            for index in range(self.num_envs)
        ]
        self._seed = seed
        self._reset_seed: int | None = None
        self._random = RandomActions(self.spec, self.num_envs, seed)
        self._obs_columns = [(key, column_name(OBS, key)) for key in self.spec.obs]
        self._action_columns = [(key, column_name(ACTION, key)) for key in self.spec.action]
        own = self.spec.columns()
        self._no_extras = {
            name: spec.zeros(self.num_envs) for name, spec in columns.items() if name not in own
        }
        self._budget = budget
        if budget is not None:
            budget.join(lambda: self.steps_in_chunks, self.flush)
        self._may_use_policy = may_use_policy or self._has_weights
        self._is_random = random_prefill
        self._is_checked = False
        self._has_told = False
        self._row: EnvStep | None = None
        # of the row, as plain values
        self._ended = [False] * self.num_envs
        self._has_rows = False
        self._question: Callable[[], Actions] | None = None
        self._returns = [0.0] * self.num_envs
        self._lengths = [-1] * self.num_envs
        self._mask = self.spec.action_mask() if self.spec.tasks else None
        self._tasks = [0] * self.num_envs
        self._steps_of: Counter[int] = Counter()
        self._episodes: list[EpisodeResult] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._faults: Counter[str] = Counter()
        self._env_times = HistogramBuilder(BUCKETS_S)
        self._reported_agent_steps = self._restored_steps = 0
        self._reported_blocked_s = 0.0
        self.agent_steps = self.rows = 0
        self.quarantined: dict[int, str] = {}
        self.lost_tasks: dict[tuple[int, str], str] = {}

    @property
    def env_steps(self) -> int:
        """Simulator steps so far: agent steps times action repeat."""
        return self.agent_steps * self.spec.action_repeat

    @property
    def has_deadlines(self) -> bool:
        """True when the envs end those of them that hang."""
        return self.env.has_deadlines

    @property
    def begins_episode(self) -> bool:
        """True when the next :meth:`step` contains the reset of an env."""
        return self._row is None or True in self._ended

    @property
    def open_rows(self) -> int:
        """Rows that would be lost if this process died now."""
        return sum(writer.open_rows for writer in self._writers)

    @property
    def steps_in_chunks(self) -> int:
        """Agent steps that are written and not acknowledged."""
        acked = sum(writer.acked_steps for writer in self._writers)
        return self.agent_steps - self._restored_steps - acked

    @property
    def is_stalled(self) -> bool:
        """True while no env has a row: all are late or being rebuilt."""
        return self._row is not None and not self._has_rows

    def begin(self, patience_s: float = float("inf")) -> None:
        """Ask for the next actions without waiting for them; :meth:`step`, which takes the same
        patience, goes on from there.
        """
        self.env.patience_s = patience_s
        row = self._start() if self._row is None else self._row
        if self._question is None and not self.is_stalled:
            self._question = self._ask(row)

    def step(self, patience_s: float = float("inf")) -> int:
        """One decision of every env.

        Args:
            patience_s: How long to wait for a row while no env can give one; where envs have no
                deadlines, as long as it takes.

        Returns:
            Rows written: one per live env; 0 when none could be, or may be any more.

        Raises:
            EnvFailureError: If every env is in quarantine; what is open has been sent.
            TrainingError: If the policy gives an action that is not finite.
        """
        if self._budget is not None and not self._budget.take(self.num_envs):
            return 0
        started = self._clock()
        self.begin(patience_s)
        if self._question is None:
            self._await_envs()
            return 0
        assert self._row is not None
        row = self._row
        question = self._question
        self._question = None  # if it fails, it can be asked again
        choice = question()
        if self._mask is not None:
            choice = self._masked(choice, row)
        chosen = self._clock()
        made = self.agent_steps
        written = self._store(row, choice)
        stored = self._clock()
        if self._budget is not None:
            self._budget.spent(self.agent_steps - made)
        self._move(partial(self.env.step, choice.action))
        stepped = self._clock()
        self._env_times.add(stepped - stored)
        self._seconds["inference"] += chosen - started
        self._seconds["encode"] += stored - chosen
        self._seconds["env"] += stepped - stored
        return written

    def flush(self) -> None:
        """Send every open chunk; returns when all are acknowledged."""
        for writer in self._writers:
            writer.send()
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Send what is open and close the envs."""
        try:
            self.flush()
        finally:
            self.env.close()

    def drain_episodes(self) -> list[EpisodeResult]:
        """Episodes that ended since the last call."""
        episodes = self._episodes
        self._episodes = []
        return episodes

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        fresh = self.agent_steps - self._reported_agent_steps
        self._reported_agent_steps = self.agent_steps
        values: MetricMap = {
            "agent_steps_total": Sum(fresh),
            "env_steps_total": Sum(fresh * self.spec.action_repeat),
        }
        blocked = sum(writer.blocked_s for writer in self._writers)
        self._seconds["blocked"] = blocked - self._reported_blocked_s
        self._seconds["encode"] = max(0.0, self._seconds["encode"] - self._seconds["blocked"])
        self._reported_blocked_s = blocked
        if self._budget is not None:
            self._seconds["blocked"] += self._budget.drain_waited_s()
        values |= {
            f"actor_seconds_total{{state={state}}}": Sum(seconds)
            for state, seconds in self._seconds.items()
        }
        values |= {
            f"env_errors_total{{reason={kind}}}": Sum(count) for kind, count in self._faults.items()
        }
        for index, task in enumerate(self.spec.tasks):  # one without a step is there to be missed
            values[key_of("task_agent_steps_total", task=task.name)] = Sum(self._steps_of[index])
        self._steps_of = Counter()
        values["env_step_seconds"] = self._env_times.take()
        self._seconds = defaultdict(float)
        self._faults = Counter()
        merge_into(values, self._acting.drain_metrics())
        return values

    def checkpoint(self) -> dict[str, Any]:
        """Send what is open and return everything needed to go on exactly.

        Envs that cannot be saved are reset, in this run as in the one that resumes, from a seed
        that both derive alike.

        Raises:
            StateError: If :meth:`begin` was called and ``step`` was not.
        """
        if self._question is not None:
            raise StateError("a worker that waits for actions cannot be saved; step it first")
        envs = None if self._row is None else self._env_state()
        if envs is None:
            self._store_ends()
        self.flush()
        if envs is None:
            self._abandon_episodes()
        row = self._row
        return {
            "env": envs,
            "row": None
            if row is None
            else {**{f"obs/{key}": value for key, value in row.obs.items()}, **_flags(row)},
            "rngs": self._random.states(),
            "writers": [writer.state() for writer in self._writers],
            "acting": self._acting.state(),
            "is_random": self._is_random,
            "reset_seed": self._reset_seed,
            "returns": np.array(self._returns),
            "lengths": np.array(self._lengths),
            "agent_steps": self.agent_steps,
            "rows": self.rows,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`checkpoint`, in a worker with the same arguments."""
        self._random.set_states(state["rngs"])
        for writer, saved in zip(self._writers, state["writers"], strict=True):
            writer.set_state(saved)
        if state["acting"] is not None:
            self._acting.set_state(state["acting"])
        self._is_random = bool(state["is_random"])
        self._reset_seed = state["reset_seed"]
        self._returns = np.asarray(state["returns"]).tolist()
        self._lengths = np.asarray(state["lengths"]).tolist()
        self.agent_steps = int(state["agent_steps"])
        self.rows = int(state["rows"])
        self._reported_agent_steps = self._restored_steps = self.agent_steps
        self._row = self._question = None
        if state["env"] is not None and self._takes_back(state["env"]):
            saved_row = {name: np.array(value) for name, value in state["row"].items()}
            obs = {key: saved_row.pop(f"obs/{key}") for key in self.spec.obs}
            self._arrive(EnvStep(obs=obs, **saved_row))
            if self._mask is not None:
                self._tasks = obs[TASK].tolist()

    def _env_state(self) -> Any:
        """What the envs go on from; None where one cannot give it, or gives what no file takes."""
        from worldloom.training.trees import split_tree

        try:
            state = self.env.state()
            split_tree({"envs": state})
        except FOREIGN_ERRORS as error:
            if not self._has_told:
                self._has_told = True
                logger.warning(
                    "worker-%d begins new episodes at each checkpoint, because the state of its "
                    "envs cannot be saved: %s",
                    self.slot,
                    error_text(error),
                )
            return None
        return state

    def _store_ends(self) -> None:
        """The last rows of episodes that have ended: their action is ignored, so none is asked
        for.
        """
        row = self._row
        if row is not None and bool((row.live & row.is_last).any()):
            action = {key: spec.zeros(self.num_envs) for key, spec in self.spec.action.items()}
            ends = dataclasses.replace(row, live=row.live & row.is_last)
            version = NO_POLICY if self._is_random else self._acting.version
            self._store(ends, Actions(action, {}, version))

    def _takes_back(self, state: Any) -> bool:
        """True if the envs go on where they were; those that cannot begin new episodes, from a seed
        of their own.
        """
        try:
            self.env.set_state(state)
        except FOREIGN_ERRORS as error:
            logger.warning(
                "worker-%d begins new episodes, because its envs do not go on: %s",
                self.slot,
                error_text(error),
            )
            self._abandon_episodes()
            self._reset_seed = self._next_seed()
            return False
        return True

    def _abandon_episodes(self) -> None:
        self._lengths = [-1] * self.num_envs
        if self._row is not None:
            self._row, self._reset_seed = None, self._next_seed()

    def _next_seed(self) -> int:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self.num_envs, self.agent_steps))
        return int(sequence.generate_state(1)[0])

    def _start(self) -> EnvStep:
        row = self._move(partial(self.env.reset, self._reset_seed))
        self._reset_seed = None
        return row

    def _await_envs(self) -> None:
        """There is nothing to act on: wait for the envs, while what they had open grows old."""
        for writer in self._writers:
            writer.flush_if_old()
        started = self._clock()
        self._move(partial(self.env.step, {}))
        self._seconds["env"] += self._clock() - started

    def _move(self, ask: Callable[[], EnvStep]) -> EnvStep:
        """Take the next row of the envs; when there is none, nothing is left open, and what failed
        is known all the same.
        """
        try:
            row = ask()
        except FOREIGN_ERRORS as error:
            self._row = None  # it is stored, and no other came
            self._note_faults()
            self.flush()
            if isinstance(error, SystemExit):  # of a vector env, which fails as one
                raise EnvFailureError(
                    f"{self.spec.name} called sys.exit({error.code!r})"
                ) from error
            raise
        self._arrive(row)
        return row

    def _arrive(self, row: EnvStep) -> None:
        self._row = row
        self._ended = row.is_last.tolist()
        self._has_rows = bool(row.live.any())
        self._note_faults()

    def _note_faults(self) -> None:
        for fault in self.env.drain_faults():
            self._faults[fault.kind] += 1
            self._end_episode(fault.env, "error")
            if fault.is_quarantined:
                self.quarantined[fault.env] = f"{fault.kind}: {fault.detail}"
            if fault.lost_task:
                self.lost_tasks[fault.env, fault.lost_task] = f"{fault.kind}: {fault.detail}"

    def _has_weights(self) -> bool:
        return self._acting.version != NO_POLICY

    def _ask(self, row: EnvStep) -> Callable[[], Actions]:
        self._acting.refresh()
        if self._is_random and self._may_use_policy():
            self._is_random = False
        if self._is_random:
            return self._random_actions
        return partial(self._looked_at, self._acting.begin(row.obs, row.is_first, row.live))

    def _looked_at(self, answer: Callable[[], Actions]) -> Actions:
        """A policy's answer; the first one is looked at more closely."""
        choice = _finite(answer)
        if not self._is_checked:
            check_actions(choice, self.spec.action, self.num_envs)
            self._is_checked = True
        return choice

    def _random_actions(self) -> Actions:
        return Actions(self._random(), {}, NO_POLICY)

    def _masked(self, choice: Actions, row: EnvStep) -> Actions:
        """The decision with zeros in what the tasks of the rows do not have: random ones have
        numbers there.
        """
        assert self._mask is not None
        mask = self._mask[row.obs[TASK]]  # [N, A]
        return choice._replace(action={ACTION: choice.action[ACTION] * mask})

    def _store(self, row: EnvStep, choice: Actions) -> int:
        columns = self._columns(row, choice)
        is_live = row.live.tolist()
        is_first = row.is_first.tolist()
        is_last = self._ended
        reward = row.reward.tolist()
        written = moved = 0
        for index, writer in enumerate(self._writers):
            if not is_live[index]:
                writer.flush_if_old()
                continue
            written += 1
            if is_first[index]:
                if self._mask is not None:
                    self._tasks[index] = int(row.obs[TASK][index])
                self._returns[index] = 0.0
                self._lengths[index] = 0
            else:
                moved += 1
                if self._mask is not None:
                    self._steps_of[self._tasks[index]] += 1
                self._returns[index] += reward[index]
                self._lengths[index] += 1
            lost = index in choice.carry_resets
            writer.add(
                columns,
                index,
                choice.version,
                is_first=is_first[index],
                is_last=is_last[index],
                carry_reset=lost,
            )
            if is_last[index]:
                self._end_episode(index, "terminated" if row.terminated[index] else "truncated")
        self.rows = self.rows + written
        self.agent_steps = self.agent_steps + moved
        return written

    def _columns(self, row: EnvStep, choice: Actions) -> dict[str, np.ndarray]:
        columns = {**self._no_extras, **choice.extras, "reward": row.reward}
        columns |= {
            "is_first": row.is_first,
            "terminated": row.terminated,
            "truncated": row.truncated,
        }
        for key, name in self._obs_columns:
            columns[name] = row.obs[key]
        for key, name in self._action_columns:
            columns[name] = choice.action[key]
        return columns

    def _end_episode(self, index: int, reason: str) -> None:
        if self._lengths[index] >= 0:
            tasks = self.spec.tasks
            task = tasks[self._tasks[index]].name if tasks else ""
            self._episodes.append(
                EpisodeResult(self._returns[index], self._lengths[index], reason, task)
            )
        self._lengths[index] = -1


def _finite(answer: Callable[[], Actions]) -> Actions:
    """The answer of a policy, looked at.

    Raises:
        TrainingError: If an action is not finite.
    """
    choice = answer()
    for key, value in choice.action.items():
        if value.dtype.kind == "f" and not all_finite(value):
            raise TrainingError(
                f"the policy of version {choice.version} gave an action {key!r} that is not finite"
            )
    return choice


def _flags(row: EnvStep) -> dict[str, np.ndarray]:
    return {
        name: getattr(row, name)
        for name in ("reward", "is_first", "terminated", "truncated", "live")
    }
