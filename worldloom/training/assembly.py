"""What a Trainer is made of where its user gave nothing else: settings, optimizer, callbacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from worldloom.core.exceptions import ConfigurationError
from worldloom.training.callbacks import CheckpointCallback, LoggingCallback, ProgressCallback
from worldloom.training.config import TrainingConfig

__all__ = [
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
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        raise ConfigurationError(
            f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}; a name "
            "belongs into TrainingConfig(optimizer=...)"
        )
