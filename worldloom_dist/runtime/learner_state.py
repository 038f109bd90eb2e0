"""What a learner goes on from: the state that it followed as a standby, or the newest checkpoint.

A learner mirrors its state more often than it saves it; where a checkpoint is newer all the same,
because the state was too large to be mirrored, that is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldloom.core.exceptions import CheckpointError, TrainingError
from worldloom_dist.run.builders import check_none, check_trained_env
from worldloom_dist.run.plan import Plan

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore
    from worldloom_dist.learner.mirror import MirrorReader

__all__ = ["newest_state"]


def newest_state(
    store: CheckpointStore, plan: Plan, followed: MirrorReader | None
) -> tuple[dict[str, Any] | None, str]:
    """A learner's newest state, and where it is from; None where there is none yet.

    Raises:
        TrainingError: If there are checkpoints, and none of them can be read or is of this env:
            starting a learner again would not help.
    """
    state = followed.newest() if followed is not None else None
    if state is not None and state["train_steps"] >= _newest_saved(store):
        return state, f"update {state['train_steps']} of its predecessor"
    found = _newest_checkpoint(store, plan)
    return (None, "") if found is None else (found[1]["learner"], found[0].name)


def _newest_saved(store: CheckpointStore) -> int:
    """Updates of the newest checkpoint whose manifest can be read; -1 without one."""
    for folder in store.folders():
        try:
            return int(store.facts(folder).get("train_steps", -1))
        except CheckpointError:
            continue
    return -1


def _newest_checkpoint(store: CheckpointStore, plan: Plan) -> tuple[Path, dict[str, Any]] | None:
    try:
        found = store.newest()
        if found is None:
            check_none(store)
        else:
            check_trained_env(plan, found[0].name, store.facts(found[0]))
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    return found
