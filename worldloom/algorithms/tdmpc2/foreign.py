"""From a file of the TD-MPC2 authors to what an agent can begin with."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from worldloom.algorithms.tdmpc2.config import Architecture, TDMPC2Sizes
from worldloom.algorithms.tdmpc2.official import (
    META_WORLD_SIZES,
    META_WORLD_TASKS,
    MT30_ACTION_DIMS,
    MT30_OBS_DIMS,
    from_official_state,
    read_official,
)
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.initial_state import TrainedState
from worldloom.core.specs import ACTION, OBS, TASK, ArraySpec, EnvSpec, TaskSpec
from worldloom.envs.task_sets import MT30

__all__ = ["read_foreign"]

NOT_IN_FILE = ("dropout",)
"""Sizes that do not show in a file."""


def read_foreign(config: TDMPC2AgentConfig, path: Path, env: EnvSpec) -> TrainedState:
    """What one of the authors' files holds, of any of their layouts.

    Args:
        config: Of the agent that will begin with it: what the file's shapes cannot tell.
        path: The file.
        env: Of that agent. The tasks of a file that is none of the authors' sets are taken to be
            those of ``env``, by their place.

    Raises:
        CheckpointError: If it is damaged, hostile, or something else.
        ConfigurationError: If its tasks are not known.
    """
    entries = read_official(path)
    embedding = entries.get("_task_emb.weight")
    count = len(embedding) if isinstance(embedding, Tensor) and embedding.dim() else 1
    try:
        with reading("not a TD-MPC2 model", "its tensors do not fit together"):
            official = from_official_state(
                entries,
                action_dims=(1,) * count,  # masks follow from the tasks and are not read
                simnorm_dim=config.simnorm_dim,
                bin_low=config.bin_low,
                bin_high=config.bin_high,
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    architecture = official.model.architecture
    model = dict(official.model.state_dict())
    if not official.has_masks:
        model.pop("action_masks", None)
    state: dict[str, Any] = {"model": model}
    if official.has_target:
        state["target"] = dict(official.target.state_dict())
    return TrainedState(
        state=state,
        env=_foreign_env(path, architecture, env),
        config=_foreign_config(config, architecture),
        skipped=official.skipped,
    )


def _foreign_config(config: TDMPC2AgentConfig, architecture: Architecture) -> TDMPC2AgentConfig:
    """Settings of an agent with the networks of a file."""
    sizes = {
        field.name: getattr(architecture, field.name)
        for field in fields(TDMPC2Sizes)
        if field.name not in NOT_IN_FILE
    }
    episodic: Literal["on", "off"] = "on" if architecture.is_episodic else "off"
    return replace(config, **sizes, task_dim=architecture.task_dim or None, episodic=episodic)


def _foreign_env(path: Path, architecture: Architecture, env: EnvSpec) -> EnvSpec:
    """In which spaces and tasks the agent of a file acts."""
    size = architecture.vector_dim
    obs = dict(architecture.obs)
    action = {ACTION: ArraySpec((architecture.action_dim,))}
    if architecture.num_tasks == 1:
        return EnvSpec(name=path.name, obs=obs, action=action)
    tasks = _set_of(architecture.num_tasks, size, architecture.action_dim)
    if not tasks and len(env.tasks) == architecture.num_tasks:
        tasks = env.tasks
    if not tasks:
        raise ConfigurationError(
            f"{path} has {architecture.num_tasks} tasks with {size} observations and "
            f"{architecture.action_dim} actions, which is none of the authors' sets, and does not "
            f"say which; it can begin a run of {architecture.num_tasks} tasks, given in its order"
        )
    wide = next((t for t in tasks if t.obs_size > size), None)
    if wide is not None:
        raise ConfigurationError(
            f"{path} has {size} observations, and task {wide.name!r} has {wide.obs_size}; list "
            "the tasks that it was trained on, in its order"
        )
    many = next((t for t in tasks if t.action_size > architecture.action_dim), None)
    if many is not None:
        raise ConfigurationError(
            f"{path} has {architecture.action_dim} actions, and task {many.name!r} has "
            f"{many.action_size}; list the tasks that it was trained on, in its order"
        )
    return EnvSpec(
        name=path.name, obs={**obs, TASK: ArraySpec((), "int32")}, action=action, tasks=tasks
    )


def _set_of(count: int, obs: int, action: int) -> tuple[TaskSpec, ...]:
    """The authors' tasks of a file of 30 or 80; none where its sizes are not those of the set."""
    sizes = list(zip(MT30_OBS_DIMS, MT30_ACTION_DIMS, strict=True))
    names = list(MT30)
    envs = [f"dmc:{name}" for name in MT30]
    if count > len(sizes):
        sizes += [META_WORLD_SIZES] * len(META_WORLD_TASKS)
        names += META_WORLD_TASKS
        envs += [""] * len(META_WORLD_TASKS)  # no env of ours is one of them
    widest = max(size for size, _ in sizes), max(size for _, size in sizes)
    if (count, obs, action) != (len(sizes), *widest):
        return ()
    return tuple(
        TaskSpec(name=name, env=env, obs=((OBS, o),), action=((ACTION, a),))
        for name, env, (o, a) in zip(names, envs, sizes, strict=True)
    )
