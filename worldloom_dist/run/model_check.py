"""An agent's model held against the episodes of an evaluation; nothing of it may harm one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldloom.core.error_text import first_line
from worldloom.core.memory import memory_left
from worldloom.core.protocol import Agent
from worldloom.core.specs import ACTION, ArraySpec
from worldloom.evaluation.trust import Probes, model_facts
from worldloom_dist.run.builders import build_store, restore_agent
from worldloom_dist.run.plan import Plan

__all__ = ["check_checkpoint", "check_model"]

logger = logging.getLogger(__name__)

COPIES = 3
"""Of a checkpoint's bytes: as read, as the agent, and what the look at it takes."""

AllProbes = Mapping[str, Probes | None] | Probes | None
"""Of an evaluation; of one of several tasks those of each."""


def check_model(plan: Plan, agent: Agent, probes: AllProbes) -> dict[str, Any]:
    """``{"model": facts}`` (see :func:`worldloom.evaluation.trust.model_facts`), of several tasks
    ``{"model": {"tasks": {NAME: facts}}}``; empty where there is nothing to say.
    """
    if not plan.config.eval_model or not probes:
        return {}
    actions = plan.env_spec.action
    try:
        if isinstance(probes, Probes):
            facts = model_facts(agent, probes, actions)
        else:
            sizes = {task.name: task.action_size for task in plan.env_spec.tasks}
            of_tasks = {
                name: found
                for name, one in probes.items()
                if one is not None
                and (found := model_facts(agent, *_without_padding(one, actions, sizes[name])))
            }
            facts = {"tasks": of_tasks} if of_tasks else {}
    except Exception as error:  # an agent from outside may raise anything
        logger.warning("the model could not be held against the evaluation: %s", first_line(error))
        return {}
    return {"model": facts} if facts else {}


def _has_room(checkpoint: Path) -> bool:
    """Whether the agent of a checkpoint fits into the memory that is left, beside what was read of
    it.
    """
    wanted = COPIES * sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    left = memory_left()
    if wanted > left:
        logger.warning(
            "the model is not held against evaluations: that takes %.1f GB, and %.1f GB of memory "
            "are left; --eval-model False asks for none",
            wanted / 1e9,
            left / 1e9,
        )
    return wanted <= left


def _without_padding(
    probes: Probes, actions: Mapping[str, ArraySpec], size: int
) -> tuple[Probes, Mapping[str, ArraySpec]]:
    """The probes of a task, and its actions, of which only as many components as it uses."""
    own = {ACTION: probes.actions[ACTION][:, :size]}
    spec = dataclasses.replace(actions[ACTION], shape=(size,))
    return dataclasses.replace(probes, actions=own), {ACTION: spec}


def check_checkpoint(plan: Plan, folder: Path, probes: AllProbes) -> dict[str, Any]:
    """The same with the agent of a run's newest checkpoint, whose ``train_steps`` the facts name;
    on the CPU, because the accelerator is the learner's.
    """
    if not plan.config.eval_model or not probes:
        return {}
    try:
        newest = build_store(plan, folder).newest()
        if newest is None or not _has_room(newest[0]):
            return {}
        agent, train_steps = restore_agent(plan, newest[0])
    except Exception as error:  # it may be deleted meanwhile
        logger.warning("the newest checkpoint could not be read: %s", first_line(error))
        return {}
    found = check_model(plan, agent, probes)
    return {"model": found["model"] | {"train_steps": train_steps}} if found else {}
