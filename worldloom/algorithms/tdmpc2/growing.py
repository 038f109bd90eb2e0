"""The state of an agent of fewer tasks in one of more: what is known stays as it is, what is new
begins afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError

__all__ = ["grown"]

EMBEDDING = "task_emb"
MASKS = "action_masks"
MOMENTS = ("exp_avg", "exp_avg_sq")


def grown(state: Mapping[str, Any], model: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """A state of the first tasks as one of all.

    The embeddings of new tasks are this agent's own, their moments in the optimizer zeros.

    Args:
        state: As ``TDMPC2Agent.state_dict`` gives it.
        model: Tensors of the agent that takes it.

    Returns:
        The state; the very one where nothing is new.

    Raises:
        CheckpointError: If a task has other action components than before: the tasks were moved.
    """
    theirs = state["model"]
    if EMBEDDING not in model or EMBEDDING not in theirs:
        return state
    known, masks = theirs[EMBEDDING], theirs[MASKS]
    mine, own_masks = model[EMBEDDING], model[MASKS]
    count = len(known)
    if masks.shape[1:] == own_masks.shape[1:] and count <= len(mine):
        differs = (masks != own_masks[:count].to(masks.device)).any(1)
        if bool(differs.any()):
            raise CheckpointError(
                f"the action of task number {int(differs.nonzero()[0, 0])} has other components in "
                "the state than in this agent; tasks can only be added at the end of their list"
            )
    if count >= len(mine) or known.shape[1:] != mine.shape[1:]:
        return state
    updater = state["updater"]
    moments = dict(updater["model_optimizer"])
    if EMBEDDING in moments:
        of_tasks = dict(moments[EMBEDDING])
        of_tasks |= {name: _longer(of_tasks[name], torch.zeros_like(mine)) for name in MOMENTS}
        moments[EMBEDDING] = of_tasks
    longer = {EMBEDDING: _longer(known, mine), MASKS: own_masks.clone()}
    return {
        **state,
        "model": {**theirs, **longer},
        "updater": {**updater, "model_optimizer": moments},
    }


def _longer(known: Tensor, fresh: Tensor) -> Tensor:
    """The first rows of ``known``, then those of ``fresh``."""
    return torch.cat([known, fresh[len(known) :].detach().to(known.device)])
