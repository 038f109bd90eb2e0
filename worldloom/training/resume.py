"""What a :class:`worldloom.training.Trainer` needs to go on as if it had never stopped, as one tree.

Weights, their running average, optimizer, scheduler, callbacks, step, best loss and the state of torch's generators. Batches
need nothing: each is a function of seed and number. While averaged weights are swapped into the model, the raw ones are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError

__all__ = ["get_rng", "pack", "set_rng", "unpack"]

KEYS = ("model", "optimizer", "scheduler", "average", "rng", "step", "best_loss", "callbacks")


def pack(trainer: Any) -> dict[str, Any]:
    """Everything that going on needs."""
    return {
        "model": _raw_weights(trainer),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler is not None else None,
        "average": _averaged_weights(trainer),
        "rng": get_rng() if trainer.is_running else trainer.rng,
        "step": trainer.state.global_step,
        "best_loss": trainer.state.best_loss,
        "metrics": dict(trainer.state.metrics),
        "bad_steps": trainer.bad_steps,
        "callbacks": {type(c).__name__: c.state_dict() for c in trainer.callbacks if hasattr(c, "state_dict")},
    }


def unpack(trainer: Any, tree: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Put a tree of :func:`pack` back, except for step and generators; nothing is changed when the model does not fit.

    Raises:
        CheckpointError: If it is of another model or optimizer; names ``path``.
    """
    try:
        missing = [key for key in KEYS if key not in tree]
        if missing:
            raise CheckpointError(f"{path}: lacks {missing}; it is not a checkpoint of a Trainer")
        _check_model(path, trainer.model, tree["model"])
        trainer.optimizer.load_state_dict(tree["optimizer"])
        trainer.model.load_state_dict(tree["model"])
        if trainer.scheduler is not None and tree["scheduler"] is not None:
            trainer.scheduler.load_state_dict(tree["scheduler"])
        if trainer.average is not None and tree["average"] is not None:
            trainer.average.load_state_dict(tree["average"])
        for callback in trainer.callbacks:
            if type(callback).__name__ in tree["callbacks"] and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(tree["callbacks"][type(callback).__name__])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this trainer ({error})") from error


def get_rng() -> dict[str, Any]:
    """State of torch's generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`get_rng`."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _raw_weights(trainer: Any) -> dict[str, Tensor]:
    weights, average = dict(trainer.model.state_dict()), trainer.average
    return weights | average.values if average is not None and average.is_swapped else weights


def _averaged_weights(trainer: Any) -> dict[str, Any] | None:
    average = trainer.average
    if average is None:
        return None
    if not average.is_swapped:
        return dict(average.state_dict())
    return {"values": {name: trainer.model.state_dict()[name] for name in average.values}}


def _check_model(path: str | PathLike[str], model: Any, saved: Mapping[str, Tensor]) -> None:
    ours = model.state_dict()
    for name in sorted(ours.keys() | saved.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (ours, saved)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{path}: tensor {name!r}: this model has shape {shapes[0]}, the checkpoint {shapes[1]}")
