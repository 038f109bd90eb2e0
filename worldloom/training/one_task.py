"""From an agent of several tasks to one of a single task, which acts in it as before: for what
needs the spaces of one env.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from worldloom.algorithms.registry import (
    AgentConfig,
    fit_state,
    make_agent,
    make_agent_config,
    one_task_config,
)
from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.core.initial_state import TrainedState
from worldloom.core.specs import TASK, EnvSpec, TaskSpec
from worldloom.envs.config import EnvConfig
from worldloom.training.saved_agents import SavedAgent

__all__ = ["agent_of_task", "chosen_task", "for_task", "task_env"]


def chosen_task(name: str | None, known: Sequence[str], place: object, env: str) -> str | None:
    """The task that a person chose.

    Args:
        name: Of the task; None where none was given.
        known: The tasks of the agent; empty where it has but one.
        place, env: Where the agent lies and what it was trained in, for the sentence.

    Returns:
        The task; None where the agent has but one.

    Raises:
        ConfigurationError: If it has several and none was chosen, or has none of that name.
    """
    if not known:
        if name not in (None, env, env.partition(":")[2]):
            raise ConfigurationError(
                f"task: {place} learned one task ({env}), got {name!r}; leave it out"
            )
        return None
    if name is None:
        raise ConfigurationError(
            f"task: {place} learned {len(known)} tasks; choose one with --task NAME (task=NAME in "
            f"Python): {', '.join(known)}"
        )
    if name not in known:
        raise ConfigurationError(
            f"task: {place} learned no {name!r}{nearest(name, known)} (tasks: {', '.join(known)})"
        )
    return name


def task_env(task: TaskSpec) -> EnvConfig:
    """The env of a task alone."""
    return EnvConfig.from_settings(task.env, task.settings).resolved()


def agent_of_task(
    config: AgentConfig, state: Any, env: EnvSpec, task: TaskSpec, own: EnvSpec
) -> tuple[AgentConfig, Any]:
    """An agent of one task, that acts in it as one of several does.

    Args:
        config, state, env: Of the agent of several tasks.
        task: One of them.
        own: What its env gives and takes alone.

    Returns:
        Its settings, and the agent.

    Raises:
        ConfigurationError: If the env is not as it was, or the algorithm cannot do it.
        CheckpointError: If the state is damaged.
    """
    alone = one_task_config(config, env)
    agent = make_agent(alone, own)
    trained = TrainedState(state=state, env=env, config=config)
    agent.load_state_dict(fit_state(alone, trained, agent, task=task.name).state)
    return alone, agent


def for_task(saved: SavedAgent, name: str | None) -> SavedAgent:
    """The agent of one of its tasks; its env is built once, to see its spaces.

    Args:
        saved: Of one task, which is returned as it is, or of several.
        name: Of the task; None for an agent of one.

    Raises:
        ConfigurationError: If the task is not one of its, or its env cannot be built here.
        CheckpointError: If the state is damaged.
    """
    from worldloom.envs.factory import env_spec

    known = [task.name for task in saved.env.tasks]
    found = chosen_task(name, known, saved.path, saved.env.name)
    if found is None:
        return saved
    task = saved.env.tasks[known.index(found)]
    own = env_spec(task_env(task))
    settings = dict(saved.agent)
    config = make_agent_config(settings.pop("name"), settings)
    with saved.allowance():
        alone, agent = agent_of_task(config, saved.state, saved.env, task, own)
    origin = {key: value for key, value in saved.origin.items() if key != "score"}  # over all tasks
    return dataclasses.replace(
        saved,
        agent=dataclasses.asdict(alone),  # type: ignore[call-overload]
        env=own,
        state=agent.state_dict(),
        origin={**origin, TASK: task.name},
    )
