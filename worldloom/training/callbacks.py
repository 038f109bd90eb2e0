"""What happens beside the updates of a :class:`worldloom.training.Trainer`: logging, checkpoints,
early stopping, a progress bar.

A callback gets the trainer and may read ``trainer.state`` and set ``trainer.state.should_stop``.
``on_step_end`` may also take the losses of the step: ``on_step_end(self, step, losses)``. An epoch
is the span between two evaluations.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded
from worldloom.core.json_text import to_json

__all__ = [
    "Callback",
    "CallbackList",
    "CheckpointCallback",
    "EarlyStoppingCallback",
    "LoggingCallback",
    "ProgressCallback",
]

logger = logging.getLogger(__name__)

EVENTS = tuple(
    f"on_{span}_{edge}" for span in ("train", "epoch", "step") for edge in ("begin", "end")
)
BAR_WIDTH = 24
TAIL_BYTES = 1 << 16
"""More than any line of metrics has."""
NUMBERED = re.compile(r"checkpoint_[0-9]+\.pt")
"""Names of the checkpoints that make room for newer ones; other files are the user's own."""


class Callback:
    """Base class: every hook does nothing. ``state_dict`` and ``load_state_dict`` travel in
    checkpoints.

    Attributes:
        identity: What tells this callback from others of its class, so that each gets its own
            state back.
        is_last: Call it after the others.
    """

    identity = ""
    is_last = False

    def on_train_begin(self, trainer: Any) -> None:
        """Called once before the first update."""

    def on_train_end(self, trainer: Any) -> None:
        """Called once when training ends, also after Ctrl-C; ``trainer.is_whole`` is False behind
        an update that broke off.
        """

    def on_epoch_begin(self, trainer: Any) -> None:
        """Called before each span of ``eval_interval`` updates."""

    def on_epoch_end(self, trainer: Any) -> None:
        """Called after each such span, after the evaluation."""

    def on_step_begin(self, trainer: Any) -> None:
        """Called before each update."""

    def on_step_end(self, trainer: Any) -> None:
        """Called after each update; may be defined with the arguments ``(step, losses)``
        instead.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


class CallbackList:
    """Callbacks that are called in order, those after them that say so.

    Args:
        callbacks: Any objects with some of the hooks.
    """

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        self.callbacks = list(callbacks)

    def __iter__(self) -> Any:
        return iter(self.callbacks)

    def __len__(self) -> int:
        return len(self.callbacks)

    def append(self, callback: Any) -> None:
        """Add a callback after the others."""
        self.callbacks.append(callback)

    def call(self, event: str, trainer: Any) -> None:
        """Call one hook of all callbacks; at the end of training also after one that raises, so
        that the others close and save.

        Raises:
            ConfigurationError: If there is no such hook.
        """
        if event not in EVENTS:
            raise ConfigurationError(
                f"callbacks have no hook {event!r}; there are {', '.join(EVENTS)}"
            )
        ordered = sorted(self.callbacks, key=lambda each: bool(getattr(each, "is_last", False)))
        hooks = [hook for each in ordered if (hook := getattr(each, event, None)) is not None]
        if event == "on_train_end":
            with contextlib.ExitStack() as ends:  # calls all of them, whichever raises
                for hook in reversed(hooks):
                    ends.callback(hook, trainer)
            return
        for hook in hooks:
            if event == "on_step_end" and _wants_losses(hook):
                hook(trainer.state.global_step, dict(trainer.state.metrics))
            else:
                hook(trainer)


def _wants_losses(hook: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in inspect.signature(hook).parameters.values()) >= 2


def _console(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class LoggingCallback(Callback):
    """Writes losses every ``log_interval`` updates: to the console, to ``metrics.jsonl``, to
    TensorBoard, to W&B.

    In ``metrics.jsonl`` null stands for NaN and infinity, which JSON lacks.

    Args:
        log_interval: Updates between lines; None takes the trainer's.
        use_wandb: Log to Weights & Biases.
        wandb_project: Project of that run.
        wandb_run_name: Its name.
        log_dir: Where ``metrics.jsonl`` and TensorBoard files go; None takes the trainer's
            ``output_dir``.
        log_to_console: Write a line to stderr.
        log_to_tensorboard: Write event files.
    """

    def __init__(
        self,
        log_interval: int | None = 100,
        use_wandb: bool = False,
        wandb_project: str | None = None,
        wandb_run_name: str | None = None,
        *,
        log_dir: str | None = None,
        log_to_console: bool = True,
        log_to_tensorboard: bool = False,
    ) -> None:
        self.log_interval = checked("log_interval", log_interval, int | None, Bounds(1))
        self.log_dir = checked("log_dir", log_dir, str | None)
        self.log_to_console = log_to_console
        self.use_wandb = use_wandb
        self.log_to_tensorboard = log_to_tensorboard
        self._wandb_settings = {"project": wandb_project or "worldloom", "name": wandb_run_name}
        self._file: IO[str] | None = None
        self._board: Any = None
        self._run: Any = None
        self._mark = (0, 0.0)

    def on_train_begin(self, trainer: Any) -> None:
        """Open what is written to."""
        folder = expanded(self.log_dir or trainer.config.output_dir, "log_dir")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _opened_lines(folder / "metrics.jsonl")
        self._board = _tensorboard(folder) if self.log_to_tensorboard else None
        self._run = _wandb(self._wandb_settings) if self.use_wandb else None
        self._mark = (trainer.state.global_step, time.monotonic())

    def on_step_end(self, trainer: Any) -> None:
        """Write every ``log_interval`` updates."""
        step = trainer.state.global_step
        if step % (self.log_interval or trainer.config.log_interval) == 0:
            self._write(
                step, {n: v for n, v in trainer.state.metrics.items() if not n.startswith("eval/")}
            )

    def on_epoch_end(self, trainer: Any) -> None:
        """Write the evaluation."""
        held_out = {
            name: value for name, value in trainer.state.metrics.items() if name.startswith("eval/")
        }
        if held_out:
            self._write(trainer.state.global_step, held_out)

    def on_train_end(self, trainer: Any) -> None:
        """Close everything."""
        for target in (self._file, self._board):
            if target is not None:
                target.close()
        if self._run is not None:
            self._run.finish()
        self._file = self._board = self._run = None

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        now, (last_step, last_time) = time.monotonic(), self._mark
        if step > last_step:
            metrics["steps_per_s"] = (step - last_step) / max(now - last_time, 1e-9)
            self._mark = (step, now)
        if self.log_to_console:
            shown = {name: value for name, value in metrics.items() if not name.endswith("_loss")}
            _console(
                f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            )
        if self._file is not None:
            self._file.write(to_json({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(metrics, step=step)


def _opened_lines(path: Path) -> IO[str]:
    """A file to append lines to, without the half line that a killed process may have left at its
    end.
    """
    with path.open("ab+") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        whole = file.read().rfind(b"\n") + 1
        if whole or not start:
            file.truncate(start + whole)
    return path.open("a")


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("log_to_tensorboard", "tensorboard", "training") from error
    return SummaryWriter(str(folder))


def _wandb(settings: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError("use_wandb", "wandb", "wandb") from error
    return wandb.init(**settings)


class CheckpointCallback(Callback):
    """Saves ``checkpoint_{step}.pt`` every so often, ``checkpoint_best.pt`` by held-out loss,
    ``checkpoint_final.pt`` at the end.

    Args:
        save_interval: Updates between checkpoints; None takes the trainer's.
        output_dir: Where they go; None takes the trainer's.
        save_best: Keep the one with the lowest ``monitor``.
        max_checkpoints: How many numbered ones stay.
        save_dir: Another spelling of ``output_dir``.
        save_every: Another spelling of ``save_interval``.
        keep_last: Another spelling of ``max_checkpoints``.
        monitor: Metric that decides: ``eval/loss``, or ``loss`` where nothing is held out.
    """

    is_last = True  # it saves the states of the others

    def __init__(
        self,
        save_interval: int | None = 10000,
        output_dir: str | None = None,
        save_best: bool = True,
        max_checkpoints: int = 5,
        *,
        save_dir: str | None = None,
        save_every: int | None = None,
        keep_last: int | None = None,
        monitor: str = "eval/loss",
    ) -> None:
        interval = save_every if save_every is not None else save_interval
        kept = keep_last if keep_last is not None else max_checkpoints
        self.save_interval = checked("save_interval", interval, int | None, Bounds(1))
        self.max_checkpoints = checked("max_checkpoints", kept, int, Bounds(1))
        self.output_dir = checked("output_dir", save_dir or output_dir, str | None)
        self.save_best = save_best
        monitor = checked("monitor", monitor, str)
        self.monitor = (
            monitor if "/" in monitor or monitor.startswith("eval") else f"eval/{monitor}"
        )
        self.identity = self.monitor
        self.best = float("inf")
        self._written: list[Path] = []

    def _folder(self, trainer: Any) -> Path:
        return expanded(self.output_dir or trainer.config.output_dir, "output_dir")

    def on_step_end(self, trainer: Any) -> None:
        """Save every ``save_interval`` updates and drop the oldest; the best one first, so that
        each knows its score.
        """
        step = trainer.state.global_step
        if step % trainer.config.eval_interval == 0:
            self._keep_best(trainer)
        if step % (self.save_interval or trainer.config.save_interval):
            return
        folder = self._folder(trainer)
        trainer.save_checkpoint(folder / f"checkpoint_{step}.pt")
        path = folder / f"checkpoint_{step}.pt"
        self._written = [*(known for known in self._written if known != path), path]
        for old in self._by_age(folder)[: -self.max_checkpoints]:
            old.unlink(missing_ok=True)

    def _by_age(self, folder: Path) -> list[Path]:
        """Numbered checkpoints, the oldest first: those of an earlier run, which may have higher
        numbers, and then our own in the order in which they were written.
        """
        found = [path for path in folder.iterdir() if NUMBERED.fullmatch(path.name)]
        return sorted(
            found,
            key=lambda path: (
                self._written.index(path) if path in self._written else -1,
                int(path.stem.split("_")[1]),
            ),
        )

    def on_epoch_end(self, trainer: Any) -> None:
        """Save when the held-out loss is the lowest so far."""
        self._keep_best(trainer)

    def _keep_best(self, trainer: Any) -> None:
        score = trainer.state.metrics.get(self.monitor)
        if self.save_best and score is not None and score < self.best:
            self.best = score
            trainer.save_checkpoint(self._folder(trainer) / "checkpoint_best.pt")

    def on_train_end(self, trainer: Any) -> None:
        """Save the end, unless the last update broke off: what is half changed is no checkpoint."""
        if not getattr(trainer, "is_whole", True):
            logger.warning(
                "update %d broke off: checkpoint_final.pt is not written",
                trainer.state.global_step + 1,
            )
            return
        trainer.save_checkpoint(self._folder(trainer) / "checkpoint_final.pt")

    def state_dict(self) -> dict[str, Any]:
        """The best score."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best = state["best"]


class EarlyStoppingCallback(Callback):
    """Stops when a metric has not improved for ``patience`` updates.

    Args:
        patience: Updates without improvement.
        min_delta: What counts as one.
        monitor: Name of the metric.
        mode: Is lower (``min``) or higher (``max``) better?
    """

    def __init__(
        self,
        patience: int = 5000,
        min_delta: float = 1e-4,
        monitor: str = "loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self.patience = checked("patience", patience, int, Bounds(1))
        self.min_delta = checked("min_delta", min_delta, float, NOT_NEGATIVE)
        self.monitor = checked("monitor", monitor, str)
        self.mode = checked("mode", mode, Literal["min", "max"])
        self.identity = f"{self.mode} of {self.monitor}"
        self.best = float("inf")
        self.best_step = 0

    def on_step_end(self, trainer: Any) -> None:
        """Compare and perhaps ask the trainer to stop."""
        value = trainer.state.metrics.get(self.monitor)
        step = trainer.state.global_step
        if value is None:
            return
        score = value if self.mode == "min" else -value
        if score < self.best - self.min_delta:
            self.best = score
            self.best_step = step
        elif step - self.best_step >= self.patience:
            trainer.state.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The best score and when it was."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best = state["best"]
        self.best_step = state["best_step"]


class ProgressCallback(Callback):
    """A progress bar on stderr.

    Args:
        desc: Text before the bar.
        stream: Where it is drawn; stderr by default.
    """

    def __init__(self, desc: str = "Training", *, stream: IO[str] | None = None) -> None:
        self.desc = desc
        self.stream = stream
        self._last = 0.0

    def on_step_end(self, trainer: Any) -> None:
        """Draw, at most ten times per second."""
        now = time.monotonic()
        state = trainer.state
        if now - self._last >= 0.1 or state.global_step == trainer.config.total_steps:
            self._last = now
            self._draw(
                state.global_step,
                trainer.config.total_steps,
                state.metrics.get("loss", float("nan")),
            )

    def on_train_end(self, trainer: Any) -> None:
        """Leave the line."""
        (self.stream or sys.stderr).write("\n")

    def _draw(self, step: int, total: int, loss: float) -> None:
        filled = min(BAR_WIDTH, BAR_WIDTH * step // max(total, 1))
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        stream = self.stream or sys.stderr
        stream.write(f"\r{self.desc} [{bar}] {step}/{total} loss {loss:.4g} ")
        stream.flush()
