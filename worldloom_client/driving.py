"""Turns any Gymnasium env into a worker of a run: its observations become questions, the answers
are carried out.

    with connect("robot-host:50051", num_envs=1) as session:
        drive(gymnasium.make("Pendulum-v1"), session, episodes=10)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloom_client.errors import ClientError
from worldloom_client.spaces import ActionConverter, ObsConverter
from worldloom_client.wire import Spec

__all__ = ["Episode", "drive"]


class Asks(Protocol):
    """A session, as far as driving needs it."""

    @property
    def obs_specs(self) -> list[Spec]:
        """Arrays of an observation."""

    @property
    def action_specs(self) -> list[Spec]:
        """Arrays of an action."""

    def act(
        self,
        obs: Any,
        reward: float = 0.0,
        *,
        terminated: bool = False,
        truncated: bool = False,
        env: int = 0,
    ) -> Any:
        """The action for one env."""

    def executed(self, action: Any, *, source: str = "human", env: int = 0) -> None:
        """Tell what ran in place of the last answer."""

    def abandon(self, env: int = 0) -> None:
        """The episode ends without a last observation."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode that ended.

    Attributes:
        episode_return: Sum of its rewards.
        length: Decisions.
    """

    episode_return: float
    length: int


def drive(
    env: Any,
    session: Asks,
    *,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    index: int = 0,
    override: Callable[[Any, Any], tuple[Any, str] | None] | None = None,
    on_episode: Callable[[Episode], object] = lambda _: None,
) -> list[Episode]:
    """Play an env with a session's policy.

    Args:
        env: A Gymnasium env.
        session: An open session.
        episodes, steps: When to stop: after this many episodes or decisions, whichever comes first;
            without either never.
        seed: Of the first reset.
        index: Which of the session's envs it is.
        override: Told the observation and the policy's action as the env takes it, before it runs;
            returns another action to run and its source (``human``, ``safety`` or ``script``), or
            None.
        on_episode: Told every episode that ends.

    Returns:
        The episodes that ended.

    Raises:
        ClientError: If the env's spaces are not the policy's, or the session fails.
    """
    to_obs = ObsConverter(env.observation_space, session.obs_specs)
    to_action = ActionConverter(env.action_space, session.action_specs)
    ended: list[Episode] = []
    done = 0
    begun = False
    try:
        while (episodes is None or len(ended) < episodes) and (steps is None or done < steps):
            obs, _ = env.reset(seed=seed if not begun else None)
            begun = True
            total = 0.0
            length = 0
            reward, terminated, truncated = 0.0, False, False
            while True:
                answer = session.act(
                    to_obs(obs), reward, terminated=terminated, truncated=truncated, env=index
                )
                if terminated or truncated:
                    ended.append(Episode(total, length))
                    on_episode(ended[-1])
                    break
                if steps is not None and done >= steps:
                    session.abandon(index)
                    break
                action = to_action(answer if isinstance(answer, dict) else {"action": answer})
                if override is not None and (instead := override(obs, action)) is not None:
                    action, source = instead
                    session.executed(to_action.inverse(action), source=source, env=index)
                obs, reward, terminated, truncated, _ = env.step(action)
                reward = float(reward)
                if not np.isfinite(reward):
                    raise ClientError(f"the env gave a reward that is not finite: {reward}")
                terminated, truncated = bool(terminated), bool(truncated)
                total += reward
                length += 1
                done += 1
    except BaseException:
        session.abandon(index)
        raise
    return ended
