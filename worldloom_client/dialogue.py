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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloom_client.errors import ClientError, WireError
from worldloom_client.wire import SOURCES, Spec, encode_tensor, message, named

__all__ = ["Dialogue"]

ActRequest = message("ActRequest")
Executed = message("Executed")
Action = dict[str, np.ndarray]


@dataclass(slots=True)
class _Row:
    """One question of one env, and what became of it."""

    step: int
    obs: Action
    reward: float
    is_first: bool
    terminated: bool
    truncated: bool
    is_skipped: bool = False
    ran: Action | None = None
    source: str = "policy"
    is_known: bool = False
    """The server that is asked now knows what ran: its own answer, or what it was told."""


@dataclass(slots=True)
class _Env:
    rows: deque[_Row] = field(default_factory=deque)
    next_step: int = 0
    stored: int = 0
    is_ended: bool = True
    """The next question begins an episode."""


class Dialogue:
    """One session's memory.

    Args:
        obs, action: What the server described.
        num_envs: Envs of the session.
        compress: Send large arrays compressed.
    """

    def __init__(
        self, obs: Sequence[Spec], action: Sequence[Spec], num_envs: int, *, compress: bool
    ) -> None:
        self.obs = list(obs)
        self.action = list(action)
        self.num_envs = num_envs
        self.rows_skipped = 0
        self._compress = compress
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
        rows = []
        checked = self._checked(obs, len(envs))
        for place, number in enumerate(envs):
            if not 0 <= number < self.num_envs:
                raise WireError(f"env {number}: this session has envs 0 to {self.num_envs - 1}")
            env = self._envs[number]
            is_first = env.is_ended
            row = _Row(
                env.next_step,
                {key: value[place] for key, value in checked.items()},
                0.0 if is_first else float(reward[place]),
                is_first,
                bool(terminated[place]) and not is_first,
                bool(truncated[place]) and not is_first,
                skip_store,
            )
            rows.append((number, row))
        request = self._request(rows)
        for number, row in rows:
            env = self._envs[number]
            env.rows.append(row)
            env.next_step += 1
            env.is_ended = row.terminated or row.truncated
            self.rows_skipped += row.is_skipped
        return request

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
                row.is_known = is_new
            if place < len(response.stored):
                self._forget(number, response.stored[place])

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
        rows = self._envs[env].rows
        if not rows or rows[-1].ran is None:
            raise ClientError(f"env {env} has no action that could be replaced: act first")
        wanted = {spec.name: spec for spec in self.action}
        if set(action) != set(wanted):
            raise WireError(f"action: got keys {sorted(action)}, expected {sorted(wanted)}")
        rows[-1].ran = {
            key: _array(action[key], spec, (), f"action {key!r}") for key, spec in wanted.items()
        }
        rows[-1].source = source
        rows[-1].is_known = False

    def abandon(self, env: int) -> None:
        """The episode of ``env`` ends here without a last observation; it counts as truncated."""
        self._envs[env].is_ended = True

    def stored_until(self, env: int, stored: int) -> None:
        """Steps of ``env`` before ``stored`` are stored, or were left out."""
        self._forget(env, stored)

    def after_break(self, positions: Iterable[Any]) -> list[Any]:
        """Questions to ask again, in order, after another server took the session over."""
        todo: dict[int, deque[_Row]] = {}
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
            requests.append(
                self._request([(env, rows.popleft()) for env, rows in todo.items() if rows])
            )
        return requests

    def _request(self, rows: Sequence[tuple[int, _Row]]) -> Any:
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

    def _row(self, env: int, step: int) -> _Row | None:
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
            spec.name: _array(obs[spec.name], spec, (count,), f"obs {spec.name!r}")
            for spec in self.obs
        }


def _array(value: Any, spec: Spec, lead: tuple[int, ...], what: str) -> np.ndarray:
    """A copy in the dtype of the spec.

    Raises:
        WireError: If the shape is another one, or numbers would be changed by the dtype.
    """
    given = np.asarray(value)
    shape = (*lead, *spec.shape)
    if given.shape != shape:
        raise WireError(f"{what}: got shape {given.shape}, expected {shape}")
    if not np.can_cast(given.dtype, spec.dtype, "same_kind"):
        raise WireError(f"{what}: got {given.dtype}, expected {spec.dtype}")
    array = np.array(given, spec.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise WireError(f"{what}: holds numbers that are not finite")
    return array
