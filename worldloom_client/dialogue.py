"""What a client remembers of one session: which questions it asked, what ran, and what of it is
stored. No I/O, so the blocking and the asyncio session share it.

    question(step k: observation, reward, flags)  ->  answer(action of step k)
    executed(step k: something else ran)          ->  rides on question k + 1

A row of replay is complete when the next question of its env comes. Whatever the server has not
called stored is kept here, and asked again from the step that the server names after a break; the
actions that ran are told again with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from worldloom_client.errors import ClientError, WireError
from worldloom_client.rows import LARGEST, Action, Row, checked_array
from worldloom_client.wire import SOURCES, Spec, check_action, encode_tensor, message, named

__all__ = ["Dialogue"]

ActRequest = message("ActRequest")
Executed = message("Executed")


@dataclass(slots=True)
class _Env:
    rows: deque[Row] = field(default_factory=deque)
    next_step: int = 0
    stored: int = 0
    is_ended: bool = True
    """The next row begins an episode."""
    is_apart: bool = False
    """Rows are skipped until the next episode begins."""
    newest: Row | None = None
    waiting: Row | None = None
    """A skipped row of which it may still be told what ran."""
    made: int = 0


class Dialogue:
    """One session's memory.

    Args:
        obs, action: What the server described.
        num_envs: Envs of the session.
        compress: Send large arrays compressed.

    Attributes:
        rows_skipped: Rows that were left out of replay.
        on_skipped: Takes a skipped row of an env once it is complete, to store it in another way;
            None leaves it out.
    """

    def __init__(
        self, obs: Sequence[Spec], action: Sequence[Spec], num_envs: int, *, compress: bool
    ) -> None:
        self.obs = list(obs)
        self.action = list(action)
        self.num_envs = num_envs
        self.rows_skipped = 0
        self.on_skipped: Callable[[int, Row], object] | None = None
        self._compress: Literal["", "zlib"] = "zlib" if compress else ""
        self._envs = [_Env() for _ in range(num_envs)]

    @property
    def stored(self) -> list[int]:
        """Rows of every env that are in replay."""
        return [env.stored for env in self._envs]

    @property
    def kept(self) -> int:
        """Rows that are kept here until they are stored."""
        return sum(len(env.rows) for env in self._envs)

    def begins_episode(self, env: int) -> bool:
        """True when the next question of ``env`` begins an episode."""
        return self._envs[env].is_ended

    def question(
        self,
        envs: Sequence[int],
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        *,
        skip_store: bool = False,
    ) -> Any:
        """The question of ``n`` envs.

        Args:
            envs: Which, each once.
            obs: Per key ``[n, *shape]``.
            reward, terminated, truncated: ``[n]``, of the way here; of no meaning where an episode
                begins.
            skip_store: Keep these rows out of replay.

        Raises:
            WireError: If an array is not what the policy sees.
        """
        made = self._rows(envs, obs, reward, terminated, truncated)
        is_apart = skip_store or any(
            self._envs[number].is_apart and not row.is_first for number, row in made
        )
        for number, row in made:
            env = self._envs[number]
            row.step = env.next_step
            row.is_skipped = is_apart
        request = self._request(made)
        for number, row in made:
            env = self._envs[number]
            env.rows.append(row)
            env.next_step += 1
            self._enter(number, row)
        return request

    def own(
        self,
        envs: Sequence[int],
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        ran: Sequence[Mapping[str, Any]],
    ) -> None:
        """Rows of which no server is asked, because none can be: they are skipped, and so is what
        follows in their episodes.

        Args:
            envs, obs, reward, terminated, truncated: As for :meth:`question`.
            ran: Per env the action that runs.

        Raises:
            WireError: If an array is not what the policy sees, or an action none of its.
        """
        actions = [self._action(action) for action in ran]
        for (number, row), action in zip(
            self._rows(envs, obs, reward, terminated, truncated), actions, strict=True
        ):
            row.ran = action
            row.source = "script"
            row.is_skipped = True
            self._enter(number, row)
            if row.is_last:
                self._complete(self._envs[number], number)

    def instead(self, request: Any, ran: Sequence[Mapping[str, Any]]) -> None:
        """No answer came for ``request``: this ran, and what follows in these episodes is skipped.

        Raises:
            WireError: If an action is none of the policy's.
        """
        actions = [self._action(action) for action in ran]
        names = zip(request.env, request.step, strict=True)
        for (number, step), action in zip(names, actions, strict=True):
            row = self._row(number, step)
            env = self._envs[number]
            env.is_apart = True
            if row is None or row.ran is not None:
                continue
            row.ran = action
            row.source = "script"
            if row.is_skipped and row.is_last:
                self._complete(env, number)

    def answer(self, request: Any, response: Any) -> None:
        """Take the answer of a question.

        Raises:
            WireError: If it does not fit.
        """
        count = len(request.env)
        actions = named(self.action, response.action, (count,), "action")
        for place, (number, step) in enumerate(zip(request.env, request.step, strict=True)):
            row = self._row(number, step)
            if row is not None:
                is_new = row.ran is None
                if is_new:
                    row.ran = {key: value[place] for key, value in actions.items()}
                    row.version = (response.version.incarnation, response.version.update)
                row.is_known = is_new
                if is_new and row.is_skipped and row.is_last:
                    self._complete(self._envs[number], number)
            if place < len(response.stored):
                self._forget(number, response.stored[place])

    def take_back(self, request: Any) -> None:
        """The server refused a question, and knows nothing of it: so it was not asked."""
        for number, step in zip(request.env, request.step, strict=True):
            env = self._envs[number]
            row = env.newest
            if row is None or row.step != step or row.ran is not None:
                continue
            env.rows.pop()
            env.next_step -= 1
            env.made -= 1
            env.waiting = None
            env.is_ended = row.is_first
            env.newest = env.rows[-1] if env.rows else None
            env.is_apart = env.newest is not None and env.newest.is_skipped
            self.rows_skipped -= row.is_skipped and self.on_skipped is None
        for executed in request.executed:
            newest = self._envs[executed.env].newest
            if newest is not None:
                newest.is_known = False

    def actions(self, request: Any) -> Action:
        """What is to run after a question that was answered, per key ``[n, *shape]``."""
        rows = [self._row(*name) for name in zip(request.env, request.step, strict=True)]
        ran = [row.ran for row in rows if row is not None and row.ran is not None]
        if len(ran) != len(rows):
            raise ClientError("the server answered another question than the one that was asked")
        return {spec.name: np.stack([action[spec.name] for action in ran]) for spec in self.action}

    def executed(self, env: int, action: Mapping[str, np.ndarray], source: str) -> None:
        """What ran in place of the newest answer.

        Raises:
            ClientError: If there is no answer yet.
            WireError: If the action or the source is none.
        """
        if source not in SOURCES:
            raise WireError(f"source: got {source!r}, expected one of {', '.join(SOURCES)}")
        newest = self._envs[env].newest
        if newest is None or newest.ran is None:
            raise ClientError(f"env {env} has no action that could be replaced: act first")
        newest.ran = self._action(action)
        newest.source = source
        newest.is_known = False

    def abandon(self, env: int) -> None:
        """The episode of ``env`` ends here without a last observation; it counts as truncated."""
        state = self._envs[env]
        state.is_ended = True
        if state.waiting is not None:
            state.waiting.truncated = not state.waiting.is_first
            self._complete(state, env)

    def complete(self) -> None:
        """Nothing more comes: what was left out so far is complete."""
        for env in range(self.num_envs):
            if self._envs[env].waiting is not None:
                self.abandon(env)

    def stored_until(self, env: int, stored: int) -> None:
        """Steps of ``env`` before ``stored`` are stored, or were left out."""
        self._forget(env, stored)

    def after_break(self, positions: Iterable[Any]) -> list[Any]:
        """Questions to ask again, in order, after another server took the session over."""
        todo: dict[int, deque[Row]] = {}
        for position in positions:
            self._forget(position.env, position.stored)
            env = self._envs[position.env]
            for row in env.rows:
                row.is_known = False
            # what was called stored here is stored, whatever the server remembers of it
            begin = max(position.next_step, env.stored)
            again = deque(row for row in env.rows if row.step >= begin)
            before = self._row(position.env, begin - 1)
            if before is not None and before.ran is None:
                again.appendleft(before)  # asked, and its answer was lost on the way
            todo[position.env] = again
        requests = []
        while any(todo.values()):
            is_skipped = next(rows[0].is_skipped for rows in todo.values() if rows)
            together = [
                (env, rows.popleft())
                for env, rows in todo.items()
                if rows and rows[0].is_skipped == is_skipped
            ]
            requests.append(self._request(together))
        return requests

    def _rows(
        self,
        envs: Sequence[int],
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> list[tuple[int, Row]]:
        """The rows that envs have arrived at; nothing is changed yet."""
        made = []
        checked = self._checked(obs, len(envs))
        for place, number in enumerate(envs):
            if not 0 <= number < self.num_envs:
                raise WireError(f"env {number}: this session has envs 0 to {self.num_envs - 1}")
            env = self._envs[number]
            is_first = env.is_ended
            if not is_first and not abs(float(reward[place])) <= LARGEST:
                raise WireError(f"reward: got {reward[place]}, expected a number of float32")
            row = Row(
                env.made,
                {key: value[place] for key, value in checked.items()},
                0.0 if is_first else float(reward[place]),
                is_first,
                bool(terminated[place]) and not is_first,
                bool(truncated[place]) and not is_first,
            )
            made.append((number, row))
        return made

    def _enter(self, number: int, row: Row) -> None:
        """The env is at ``row`` now."""
        env = self._envs[number]
        self._complete(env, number)
        env.made += 1
        env.is_ended = row.is_last
        env.is_apart = row.is_skipped
        env.newest = row
        if row.is_skipped and self.on_skipped is not None:
            env.waiting = row
        self.rows_skipped += row.is_skipped and self.on_skipped is None

    def _complete(self, env: _Env, number: int) -> None:
        """Hand the skipped row that waits on, if there is one."""
        row = env.waiting
        env.waiting = None
        if row is not None and self.on_skipped is not None:
            self.on_skipped(number, row)

    def _action(self, given: Mapping[str, Any]) -> Action:
        wanted = {spec.name: spec for spec in self.action}
        if set(given) != set(wanted):
            raise WireError(f"action: got keys {sorted(given)}, expected {sorted(wanted)}")
        found = {}
        for key, spec in wanted.items():
            found[key] = checked_array(given[key], spec, (), f"action {key!r}")
            check_action(found[key], spec, f"action {key!r}")
        return found

    def _request(self, rows: Sequence[tuple[int, Row]]) -> Any:
        stack = {spec.name: np.stack([row.obs[spec.name] for _, row in rows]) for spec in self.obs}
        executed = []
        for number, row in rows:
            before = self._row(number, row.step - 1)
            if before is None or before.is_known or before.ran is None or row.is_first:
                continue
            tensors = [encode_tensor(before.ran[spec.name]) for spec in self.action]
            executed.append(Executed(env=number, action=tensors, source=SOURCES[before.source]))
            before.is_known = True
        return ActRequest(
            env=[number for number, _ in rows],
            step=[row.step for _, row in rows],
            obs=[encode_tensor(stack[s.name], compress=self._compress) for s in self.obs],
            reward=[row.reward for _, row in rows],
            is_first=bytes(row.is_first for _, row in rows),
            terminated=bytes(row.terminated for _, row in rows),
            truncated=bytes(row.truncated for _, row in rows),
            executed=executed,
            skip_store=any(row.is_skipped for _, row in rows),
        )

    def _row(self, env: int, step: int) -> Row | None:
        rows = self._envs[env].rows
        place = step - rows[0].step if rows else -1
        return rows[place] if 0 <= place < len(rows) else None

    def _forget(self, number: int, stored: int) -> None:
        """Rows that are stored need not be kept; the newest one is, because what ran in it is told
        with the next question.
        """
        env = self._envs[number]
        env.stored = max(env.stored, stored)
        while len(env.rows) > 1 and env.rows[0].step < env.stored - 1:
            env.rows.popleft()

    def _checked(self, obs: Mapping[str, np.ndarray], count: int) -> Action:
        wanted = {spec.name for spec in self.obs}
        if set(obs) != wanted:
            raise WireError(f"obs: got keys {sorted(obs)}, expected {sorted(wanted)}")
        return {
            spec.name: checked_array(obs[spec.name], spec, (count,), f"obs {spec.name!r}")
            for spec in self.obs
        }
