"""What a Trainer is made of where its user gave nothing else: settings, optimizer, callbacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from worldloom.core.exceptions import ConfigurationError
from worldloom.training.callbacks import (
    EVENTS,
    CheckpointCallback,
    LoggingCallback,
    ProgressCallback,
)
from worldloom.training.config import TrainingConfig

__all__ = [
    "check_callback",
    "check_fit",
    "check_parts",
    "check_scheduler",
    "make_folder",
    "make_optimizer",
    "own_setting",
    "with_defaults",
]

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
DEFAULTS = TrainingConfig()


def own_setting(config: TrainingConfig, model: Any, name: str) -> float:
    """The config's value, or where that is at its default the model's own."""
    own: float = getattr(config, name)
    if own != getattr(DEFAULTS, name):
        return own
    return float(getattr(getattr(model, "config", None), name, own))


def with_defaults(callbacks: Sequence[Any], config: TrainingConfig) -> list[Any]:
    """The user's callbacks behind the default ones of other classes: logging, checkpoints, a
    progress bar on a terminal.
    """
    is_terminal = sys.stderr.isatty()
    defaults: list[Any] = [
        LoggingCallback(config.log_interval, log_to_console=not is_terminal),
        CheckpointCallback(config.save_interval, config.output_dir),
    ]
    if is_terminal:
        defaults.append(ProgressCallback())
    kept = [d for d in defaults if not any(isinstance(callback, type(d)) for callback in callbacks)]
    return [*kept, *callbacks]


def make_optimizer(
    model: Any, config: TrainingConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that the config describes; ``initial_lr`` of its groups is the step size
    without a schedule.
    """
    groups = model.parameter_groups(config.with_updates(learning_rate=learning_rate))
    optimizer: torch.optim.Optimizer = OPTIMIZERS[config.optimizer](groups, lr=learning_rate)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def make_folder(config: TrainingConfig) -> None:
    """Make the folder of the run.

    Raises:
        ConfigurationError: If that is impossible.
    """
    folder = config.output_dir
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"output_dir must be a folder that can be made and written, got {folder!r} ({error})"
        raise ConfigurationError(text) from error


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose step needs a metric.

    Raises:
        ConfigurationError: Says where it can be stepped instead.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigurationError(
            "scheduler must step without a metric, got ReduceLROnPlateau; use "
            "another one, or step it in on_epoch_end of a callback"
        )


def check_callback(callback: Any) -> None:
    """Refuse what has no hook, and a class in the place of a callback.

    Raises:
        ConfigurationError: Says what a callback is.
    """
    if isinstance(callback, type) or not any(hasattr(callback, event) for event in EVENTS):
        raise ConfigurationError(
            f"callbacks must have one of the hooks {', '.join(EVENTS)}, got {callback!r}; pass an "
            "instance of a Callback"
        )


def check_fit(model: Any, optimizer: Any, scheduler: Any) -> None:
    """Refuse an optimizer that changes none of the model's weights, and a scheduler of another
    optimizer: training would go on and do nothing, or at another step size.

    Raises:
        ConfigurationError: Says what it was made for.
    """
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        raise ConfigurationError(
            f"optimizer must hold parameters of the model, got a {type(optimizer).__name__} of "
            f"{len(held)} others; make it from model.parameters() of this very model"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigurationError(
            "scheduler must be of the optimizer that is used, got one of another; pass its "
            "optimizer too: Trainer(model, config, optimizer=..., scheduler=...)"
        )


def check_parts(config: Any, callbacks: Any, optimizer: Any) -> None:
    """Refuse what is no part of a Trainer.

    Raises:
        ConfigurationError: Names the argument, and what it may be.
    """
    if not isinstance(config, TrainingConfig | None):
        kind = type(config).__name__
        raise ConfigurationError(
            f"config must be a TrainingConfig, got {kind}; make one with "
            "TrainingConfig(total_steps=...)"
        )
    if not isinstance(callbacks, Sequence | None) or isinstance(callbacks, str):
        kind = type(callbacks).__name__
        raise ConfigurationError(f"callbacks must be a list of callbacks, got {kind}; write [it]")
    for callback in callbacks or ():
        check_callback(callback)
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        raise ConfigurationError(
            f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}; a name "
            "belongs into TrainingConfig(optimizer=...)"
        )
