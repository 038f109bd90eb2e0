"""The envs of one worker in groups that take turns: while one group steps, the request of the next
one is being answered.

    group 0   ask ---------------- wait, store, step | ask ----------------- wait, ...
    group 1                 ask    ---------------- wait, store, step | ask

Only worth it where actions come from afar (``RemoteActing`` with ``submit``); a policy in this
process has nothing to overlap with. A group whose envs are all late or being rebuilt is only looked
at in its turns, so that it holds up no other. One whose envs are all in quarantine takes no more
turns; what it had open has been sent.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.metrics import MetricMap, merge_into
from worldloom_dist.actors.rollout_worker import EpisodeResult, RolloutWorker

__all__ = ["GroupedWorker"]

logger = logging.getLogger(__name__)

LOOK_S = 0.05
"""How long to wait for one of several groups when none has a row."""


class GroupedWorker:
    """Several groups of envs as one worker; used by one thread. What it offers means the same as in
    ``RolloutWorker``.

    Args:
        groups: Workers of one slot and incarnation whose ``first_env`` differ, so that no stream is
            written twice.

    Raises:
        ConfigurationError: If there is no group.
    """

    def __init__(self, groups: Sequence[RolloutWorker]) -> None:
        if not groups:
            raise ConfigurationError("a grouped worker needs at least one group")
        self.groups = list(groups)
        self._turns = deque(groups)
        self.slot = groups[0].slot
        self.incarnation = groups[0].incarnation
        self.spec = groups[0].spec

    @property
    def num_envs(self) -> int:
        """Envs of all groups."""
        return sum(group.num_envs for group in self.groups)

    @property
    def agent_steps(self) -> int:
        """Decisions whose result was written."""
        return sum(group.agent_steps for group in self.groups)

    @property
    def env_steps(self) -> int:
        """Simulator steps."""
        return sum(group.env_steps for group in self.groups)

    @property
    def open_rows(self) -> int:
        """Rows that would be lost if this process died now."""
        return sum(group.open_rows for group in self.groups)

    @property
    def quarantined(self) -> dict[int, str]:
        """Envs that are not built again, numbered over all groups."""
        return {
            group.first_env + env: why
            for group in self.groups
            for env, why in group.quarantined.items()
        }

    @property
    def lost_tasks(self) -> dict[tuple[int, str], str]:
        """Tasks that an env leaves out, numbered likewise."""
        return {
            (group.first_env + env, task): why
            for group in self.groups
            for (env, task), why in group.lost_tasks.items()
        }

    @property
    def has_deadlines(self) -> bool:
        """True when the envs end those of them that hang."""
        return all(group.has_deadlines for group in self.groups)

    @property
    def begins_episode(self) -> bool:
        """True when the next :meth:`step` contains the reset of an env."""
        return any(group.begins_episode for group in self._turns)

    def step(self) -> int:
        """One decision of every env of the group whose turn it is, with the next group's request on
        its way.

        Returns:
            Rows written.

        Raises:
            EnvFailureError: If every env of every group is in quarantine; what is open has been
                sent.
            TrainingError: As ``RolloutWorker.step``.
        """
        group = self._begin_turn()
        self._turns.rotate(-1)
        self._begin_turn()
        before = group.rows
        try:
            group.step(self._patience_s(group))
        except EnvFailureError as error:
            self._retire(group, error)
        return group.rows - before

    def _patience_s(self, group: RolloutWorker) -> float:
        """How long a group may wait for its envs once they are late."""
        others = [other for other in self._turns if other is not group]
        if not others:
            return float("inf")
        return LOOK_S if all(other.is_stalled for other in others) else 0.0

    def _begin_turn(self) -> RolloutWorker:
        """Send the request of the group whose turn it is; returns that group."""
        while True:
            group = self._turns[0]
            try:
                group.begin(self._patience_s(group))
            except EnvFailureError as error:
                self._retire(group, error)
            else:
                return group

    def _retire(self, group: RolloutWorker, error: EnvFailureError) -> None:
        """Give a group no more turns; raises ``error`` if it was the last one."""
        self._turns.remove(group)
        if not self._turns:
            raise error
        last = group.first_env + group.num_envs - 1
        logger.warning(
            "envs %d to %d are given up, the others go on: %s", group.first_env, last, error
        )

    def flush(self) -> None:
        """Send every open chunk; returns when all are acknowledged."""
        for group in self.groups:
            group.flush()

    def close(self) -> None:
        """Send what is open and close every env, also when one group cannot."""
        failures = []
        for group in self.groups:
            try:
                group.close()
            except Exception as error:  # the other groups are closed first; then it is raised
                failures.append(error)
        if failures:
            raise failures[0]

    def drain_episodes(self) -> list[EpisodeResult]:
        """Episodes that ended since the last call."""
        return [episode for group in self.groups for episode in group.drain_episodes()]

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        values: MetricMap = {}
        for group in self.groups:
            merge_into(values, group.drain_metrics())
        return values
