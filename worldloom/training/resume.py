"""What a :class:`worldloom.training.Trainer` needs to go on as if it had never stopped, as one
tree.

Weights, their running average, optimizer, scheduler, callbacks, step, best loss and the state of
torch's generators. Batches need nothing: each is a function of seed and number. While averaged
weights are swapped into the model, the raw ones are saved.

A run may go on with other settings. What the user changed since the checkpoint counts; what
training itself changed (a step size that a scheduler lowered) goes on from the checkpoint.
:func:`changes` lists the former.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError
from worldloom.training.schedule import WeightAverage

__all__ = ["changes", "get_rng", "group_settings", "pack", "set_rng", "unpack"]

logger = logging.getLogger(__name__)

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
        "callbacks": {
            key: c.state_dict() for key, c in _keyed(trainer.callbacks) if hasattr(c, "state_dict")
        },
        "optimizer_class": type(trainer.optimizer).__name__,
        "group_settings": trainer.group_settings,
    }


def unpack(
    trainer: Any, tree: Mapping[str, Any], path: str | PathLike[str], *, config: Mapping[str, Any]
) -> None:
    """Put a tree of :func:`pack` back, except for step and generators; nothing is changed when the
    model does not fit.

    Args:
        trainer: Takes the state over.
        tree: What was packed.
        path: Where it comes from, for messages.
        config: The settings of training that it was made with.

    Raises:
        CheckpointError: If it is of another model or optimizer; names ``path``.
    """
    missing = [key for key in KEYS if key not in tree]
    if missing:
        raise CheckpointError(f"{path}: lacks {missing}; it is not a checkpoint of a Trainer")
    try:
        _check_model(path, trainer.model, tree["model"])
        _check_optimizer(path, trainer, tree, config)
        _load_optimizer(trainer, tree)
        trainer.model.load_state_dict(tree["model"])
        _load_scheduler(trainer, tree["scheduler"])
        _load_average(trainer, tree["average"])
        _load_callbacks(trainer.callbacks, tree["callbacks"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this trainer ({error})") from error


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Iterable[str] = ()
) -> list[str]:
    """``name old -> new`` for every setting that differs."""
    names = [name for name in now if name in before and name not in ignored]
    return [
        f"{name} {before[name]!r} -> {now[name]!r}"
        for name in names
        if _listed(before[name]) != _listed(now[name])
    ]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _check_optimizer(
    path: str | PathLike[str], trainer: Any, tree: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Refuse the moments of another kind of optimizer."""
    own = type(trainer.optimizer).__name__
    saved = tree.get("optimizer_class")
    if saved is None:  # an earlier version wrote it nowhere but in the config
        needed = {"exp_avg", "exp_avg_sq"} if own in ("AdamW", "Adam") else set()
        fits = all(needed <= set(state) for state in tree["optimizer"]["state"].values())
        is_said = not trainer.has_own_optimizer and config.get("optimizer", "") not in (
            "",
            trainer.config.optimizer,
        )
        saved = config.get("optimizer", "another one") if is_said or not fits else own
    if saved != own:
        raise CheckpointError(
            f"{path}: optimizer: the checkpoint was made with {saved}, got {own}; go "
            "on with the same one, or begin a new run"
        )


def _load_optimizer(trainer: Any, tree: Mapping[str, Any]) -> None:
    """Take over the moments, and of the settings those that the user did not change since."""
    given = trainer.group_settings
    given_before = tree.get("group_settings")
    trainer.optimizer.load_state_dict(tree["optimizer"])
    if given_before is None:  # a checkpoint that does not say what its run was given
        given_before = given if trainer.has_own_optimizer else [{} for _ in given]
    for group, new, old in zip(trainer.optimizer.param_groups, given, given_before, strict=True):
        group.update(
            {
                name: value
                for name, value in new.items()
                if name not in old or _listed(old[name]) != _listed(value)
            }
        )


def _load_scheduler(trainer: Any, saved: Any) -> None:
    if trainer.scheduler is not None and saved is not None:
        trainer.scheduler.load_state_dict(saved)
    elif (trainer.scheduler is None) != (saved is None):
        now, then = (
            ("none", "one") if trainer.scheduler is None else ("one, which starts over", "none")
        )
        logger.warning(
            "resuming with another scheduler: the checkpoint has %s, this trainer %s", then, now
        )


def _load_average(trainer: Any, saved: Any) -> None:
    """Take over averaged weights; an average that begins now begins with the weights that were
    loaded.
    """
    if trainer.average is None:
        if saved is not None:
            logger.warning(
                "resuming without averaged weights: the checkpoint has some, and ema_decay is None"
            )
        return
    if saved is None:
        logger.warning("resuming with averaged weights that begin now: the checkpoint has none")
        trainer.average = WeightAverage(trainer.model, trainer.average.decay)
        return
    trainer.average.load_state_dict(saved)


def _keyed(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Callbacks with keys: class, what it says distinguishes it from others of its class, and a
    number among equal ones.
    """
    seen: Counter[str] = Counter()
    for callback in callbacks:
        key = f"{type(callback).__name__}:{getattr(callback, 'identity', '')}"
        seen[key] += 1
        yield f"{key}#{seen[key]}", callback


def _load_callbacks(callbacks: Iterable[Any], saved: Mapping[str, Any]) -> None:
    hooks = ("state_dict", "load_state_dict")
    keyed = [
        (key, callback)
        for key, callback in _keyed(callbacks)
        if all(hasattr(callback, hook) for hook in hooks)
    ]
    alone = Counter(type(callback).__name__ for _, callback in keyed)
    found = set()
    for key, callback in keyed:
        kind = type(callback).__name__
        used = key if key in saved or alone[kind] > 1 else kind  # 0.2 wrote the class only
        if used in saved:
            callback.load_state_dict(saved[used])
            found.add(used)
        elif callback.state_dict():
            logger.warning(
                "resuming with a callback that starts over: the checkpoint has no state of %s", key
            )
    for key in sorted(name for name in saved.keys() - found if saved[name]):
        logger.warning("resuming without a callback: the checkpoint has the state of %s", key)


def get_rng() -> dict[str, Any]:
    """State of torch's generators."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`get_rng`."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _raw_weights(trainer: Any) -> dict[str, Tensor]:
    weights = dict(trainer.model.state_dict())
    average = trainer.average
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
            raise CheckpointError(
                f"{path}: tensor {name!r}: this model has shape {shapes[0]}, the "
                f"checkpoint {shapes[1]}; "
                "create the model as it was when the checkpoint was made"
            )
