"""Trains a world model offline: batches in, optimizer steps, evaluation on held-out windows,
checkpoints.

What is particular to a model is behind its hooks: ``compute_loss``, ``parameter_groups(config)``
and ``after_update(losses)``. On a CPU a run that is interrupted and resumed from a checkpoint ends
with the very bits of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from worldloom.algorithms.base import place_of
from worldloom.core.exceptions import ConfigurationError, TrainingError, WorldLoomError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded
from worldloom.training.assembly import (
    check_callback,
    check_fit,
    check_parts,
    check_scheduler,
    make_folder,
    make_optimizer,
    own_setting,
    with_defaults,
)
from worldloom.training.callbacks import (
    CallbackList,
    CheckpointCallback,
    LoggingCallback,
    ProgressCallback,
)
from worldloom.training.config import TrainingConfig
from worldloom.training.interrupts import Interruption
from worldloom.training.resume import changes, get_rng, group_settings, pack, set_rng, unpack
from worldloom.training.schedule import WeightAverage, rate_factor
from worldloom.training.sources import BatchSource, IterableSource, make_source, prefetched
from worldloom.training.tree_files import load_tree_file, save_tree_file

__all__ = ["Trainer", "TrainerState", "train"]

logger = logging.getLogger(__name__)

PATIENCE = 10
"""Updates in a row that may be skipped because a number is not finite."""
DEFAULTS = TrainingConfig()
QUIET = ("output_dir", "device", "num_workers", "prefetch_factor", "log_interval", "model_name")
"""Settings that change nothing about what is learnt; a resumed run does not mention them."""


@dataclass
class TrainerState:
    """Where a run is.

    Attributes:
        global_step: Updates made.
        metrics: Losses of the newest update, gradient norm, step size, and the newest evaluation
            under ``eval/``.
        best_loss: Lowest held-out loss so far.
        should_stop: Set it to stop after the present update.
    """

    global_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best_loss: float = float("inf")
    should_stop: bool = False


class Trainer:
    """Trains one model.

    Args:
        model: Any world model; trained in place.
        config: Settings.
        callbacks: A callback replaces the default one of the same class (logging, checkpoints,
            progress bar on a terminal).
        optimizer: Your own instead of the one that the config describes.
        scheduler: Likewise; stepped after every update.

    Example:
        >>> from worldloom import create_world_model
        >>> from worldloom.training.data import create_random_buffer
        >>> import tempfile
        >>> buffer = create_random_buffer(200, (3,), 2, num_episodes=5, episode_length=20, seed=0)
        >>> model = create_world_model("mlp:ci", obs_shape=(3,), action_dim=2)
        >>> folder = tempfile.mkdtemp()
        >>> sizes = {"total_steps": 3, "batch_size": 4, "sequence_length": 5}
        >>> config = TrainingConfig(**sizes, output_dir=folder)
        >>> trainer = Trainer(model, config)
        >>> trainer.train(buffer) is model, trainer.state.global_step
        (True, 3)
    """

    def __init__(
        self,
        model: Any,
        config: TrainingConfig | None = None,
        callbacks: Sequence[Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        check_parts(config, callbacks, optimizer)
        self.config = config or TrainingConfig()
        if isinstance(model, type) or not hasattr(model, "compute_loss"):
            raise ConfigurationError(
                f"model must be a world model, got {model!r}; make one with "
                "create_world_model, e.g. "
                "create_world_model('dreamerv3:size12m', obs_shape=(4,), action_dim=2)"
            )
        self.model = model.to(place_of(self.config.resolve_device()))
        if self.config.model_overrides:
            self.model.reconfigure(**self.config.model_overrides)
        if self.config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        make_folder(self.config)
        check_scheduler(scheduler)
        self.learning_rate = own_setting(self.config, self.model, "learning_rate")
        self.grad_clip = own_setting(self.config, self.model, "grad_clip")
        self.has_own_optimizer = optimizer is not None
        self.optimizer = optimizer or make_optimizer(self.model, self.config, self.learning_rate)
        self.group_settings = group_settings(self.optimizer)
        check_fit(self.model, self.optimizer, scheduler)
        self.scheduler = scheduler
        self.average = (
            WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None
        )
        self.callbacks = CallbackList(with_defaults(callbacks or (), self.config))
        self.state = TrainerState()
        self.history: list[dict[str, float]] = []
        self.bad_steps = 0
        self.rng: dict[str, Any] | None = None
        self.is_running = False
        self._interruption = Interruption()
        self._is_mid_update = False
        self._source: BatchSource | None = None

    @property
    def is_whole(self) -> bool:
        """False from the moment an update, or a second Ctrl-C, broke off half way: such weights are
        no state to go on from.
        """
        return not (self._is_mid_update or self._interruption.is_forced)

    def add_callback(self, callback: Any) -> None:
        """Add a callback; it takes the place of a default one of its class."""
        check_callback(callback)
        is_default = (LoggingCallback, CheckpointCallback, ProgressCallback)
        self.callbacks.callbacks = [
            c for c in self.callbacks if type(c) not in is_default or type(c) is not type(callback)
        ]
        self.callbacks.append(callback)

    # -- training ----------------------------------------------------------------------------------

    def train(
        self,
        data: Any,
        num_steps: int | None = None,
        resume_from: str | PathLike[str] | None = None,
        *,
        eval_data: Any = None,
    ) -> Any:
        """Train until ``total_steps``, or for ``num_steps`` more updates.

        Ctrl-C ends training after the present update, with a checkpoint. So do SIGTERM and a
        closed terminal, which then end the process. A second one leaves at once.

        Args:
            data: A replay buffer, a dataset, or a list or loader of batches.
            num_steps: Updates to make now.
            resume_from: A checkpoint to go on from.
            eval_data: Held-out data; by default every ``eval_episodes_every``-th episode of
                ``data``.

        Returns:
            The model; with ``ema_decay`` it holds the averaged weights.

        Raises:
            ConfigurationError: If ``total_steps`` is less than what is done already.
            TrainingError: If ten updates in a row are not finite, or torch fails.
            BufferError: If no episode is long enough.
        """
        if resume_from is not None:
            self.load_checkpoint(resume_from)
        stop = self._last_step(num_steps)
        self._source = make_source(data, self.config, eval_data)
        self.state.should_stop = False
        self._unswap()
        self.model.train()
        with self._own_randomness(), self._interruption.watched():
            try:
                self.callbacks.call("on_train_begin", self)
                self._loop(self._source, stop)
            except KeyboardInterrupt:
                if not self.is_whole:
                    raise
            except WorldLoomError:
                raise
            except RuntimeError as error:
                raise TrainingError(
                    f"update {self.state.global_step + 1} failed: {error}"
                ) from error
            finally:
                self._keep_randomness()
                self.callbacks.call("on_train_end", self)
        self._interruption.pass_on()
        if self.average is not None:
            self.average.swap(self.model)
        self.model.eval()
        return self.model

    def _last_step(self, num_steps: int | None) -> int:
        done = self.state.global_step
        total = self.config.total_steps
        if num_steps is not None:
            return done + int(checked("num_steps", num_steps, int, NOT_NEGATIVE))
        if total < done:
            raise ConfigurationError(
                f"total_steps must be >= {done}, the updates that are done already, "
                f"got {total}; raise it, or pass num_steps"
            )
        return total

    def _loop(self, source: BatchSource, stop: int) -> None:
        c = self.config
        state = self.state
        workers = 0 if isinstance(source, IterableSource) else c.num_workers
        batches = prefetched(
            source.train, range(state.global_step, stop), workers, c.prefetch_factor
        )
        with contextlib.closing(batches):
            for batch in batches:
                if state.global_step % c.eval_interval == 0:
                    self.callbacks.call("on_epoch_begin", self)
                self.callbacks.call("on_step_begin", self)
                self._update(batch)
                is_end = state.global_step % c.eval_interval == 0 or state.global_step == stop
                if is_end:
                    self._evaluate_epoch(source)
                self.callbacks.call("on_step_end", self)
                if state.global_step % c.log_interval == 0:
                    self.history.append({"step": state.global_step, **state.metrics})
                if is_end:
                    self.callbacks.call("on_epoch_end", self)
                if state.should_stop or self._interruption.signal is not None:
                    return

    def _update(self, batch: Mapping[str, Tensor]) -> None:
        """One optimizer step; a step that is not finite changes nothing, nor does one that fails
        before it changes weights.
        """
        before = get_rng()
        self._is_mid_update = True
        try:
            losses, norm, factor = self._gradients(batch)
        except Exception:
            set_rng(before)
            self._is_mid_update = False
            raise
        is_good = self._apply(losses, norm)
        self.state.global_step += 1
        self._is_mid_update = False
        self._note(losses, norm, factor)
        self._guard(is_good)

    def _gradients(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, float]:
        """Losses, gradient norm, and the factor on the step size; gradients are in the
        parameters.
        """
        factor = self._apply_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            losses = self.model.compute_loss(batch)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self._with_gradient() if p.grad is not None]
        )
        return losses, norm, factor

    def _with_gradient(self) -> list[Tensor]:
        return [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    def _apply(self, losses: Mapping[str, Tensor], norm: Tensor) -> bool:
        """Change weights, averages and step sizes; returns whether the update was finite."""
        is_good = bool(torch.isfinite(norm) & torch.isfinite(losses["loss"].detach()))
        if is_good:
            if self.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(self._with_gradient(), self.grad_clip, norm)
            self.optimizer.step()
            self.model.after_update({name: value.detach() for name, value in losses.items()})
            if self.average is not None:
                self.average.update(self.model)
        if self.scheduler is not None:
            self.scheduler.step()
        return is_good

    def _note(self, losses: Mapping[str, Tensor], norm: Tensor, factor: float) -> None:
        held_out = {
            name: value for name, value in self.state.metrics.items() if name.startswith("eval/")
        }
        values = torch.stack([value.detach().float() for value in losses.values()]).tolist()
        rate = self.optimizer.param_groups[-1]["lr"]
        self.state.metrics = (
            dict(zip(losses, values, strict=True))
            | {"grad_norm": float(norm), "learning_rate": rate}
            | held_out
        )

    def _guard(self, is_good: bool) -> None:
        self.bad_steps = 0 if is_good else self.bad_steps + 1
        if self.bad_steps >= PATIENCE:
            raise TrainingError(
                f"{PATIENCE} updates in a row were not finite, up to update "
                f"{self.state.global_step}; "
                "look at the data for extreme values, or lower learning_rate"
            )

    def _apply_rate(self) -> float:
        """Set the step size of the coming update, unless a scheduler was given."""
        c = self.config
        factor = rate_factor(
            self.state.global_step, total=c.total_steps, warmup=c.warmup_steps, schedule=c.scheduler
        )
        if self.scheduler is None:
            for group in self.optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"]) * factor
        return factor

    def _autocast(self) -> Any:
        if not self.config.mixed_precision:
            return contextlib.nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16)

    # -- evaluation --------------------------------------------------------------------------------

    def _evaluate_epoch(self, source: BatchSource) -> None:
        scores = self._evaluate(source, self.config.eval_batches)
        self.state.metrics |= {f"eval/{name}": value for name, value in scores.items()}
        self.state.best_loss = min(self.state.best_loss, scores["loss"])

    def evaluate(self, data: Any, num_batches: int = 10) -> dict[str, float]:
        """Mean losses over batches of ``data``, with averaged weights where there are some; draws
        do not depend on the past.
        """
        config = self.config.with_updates(eval_episodes_every=0)
        return self._evaluate(make_source(data, config), num_batches)

    @torch.no_grad()
    def _evaluate(self, source: BatchSource, num_batches: int) -> dict[str, float]:
        num_batches = checked("num_batches", num_batches, int, Bounds(1))
        was_training = self.model.training
        average = self.average
        swaps = average is not None and not average.is_swapped
        self.model.eval()
        totals: dict[str, float] = {}
        try:
            if swaps and average is not None:
                average.swap(self.model)
            with torch.random.fork_rng(), self._autocast():
                torch.manual_seed(self.config.seed)
                for number in range(num_batches):
                    for name, value in self.model.compute_loss(source.held_out(number)).items():
                        totals[name] = totals.get(name, 0.0) + float(value) / num_batches
        finally:
            if swaps and average is not None:
                average.swap(self.model)
            self.model.train(was_training)
        return totals

    # -- randomness --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Run with this trainer's random state, and leave the caller's as it was."""
        with torch.random.fork_rng():
            if self.rng is None:
                torch.manual_seed(self.config.seed)
            else:
                set_rng(self.rng)
            self.is_running = True
            yield

    def _keep_randomness(self) -> None:
        self.rng = get_rng()
        self.is_running = False

    # -- checkpoints -------------------------------------------------------------------------------

    def save_checkpoint(self, path: str | PathLike[str]) -> None:
        """Write everything that going on needs into one file (safetensors layout, no pickle)."""
        facts = {
            "config": self.config.to_dict(),
            "model_config": self.model.config.to_dict(),
            "step": self.state.global_step,
        }
        save_tree_file(expanded(path), pack(self), facts)

    def load_checkpoint(self, path: str | PathLike[str]) -> None:
        """Go on from a file of :meth:`save_checkpoint`; settings that differ from those of the
        checkpoint are applied and listed.

        Raises:
            CheckpointError: If it is missing, damaged, or of another model or optimizer.
        """
        tree, facts = load_tree_file(expanded(path))
        self._unswap()
        before = facts.get("config") or {}
        unpack(self, tree, path, config=before)
        self.state = TrainerState(tree["step"], dict(tree.get("metrics", {})), tree["best_loss"])
        self.bad_steps = tree.get("bad_steps", 0)
        self._is_mid_update = False
        changed = changes(before, self.config.to_dict(), ignored=QUIET)
        changed += changes(
            facts.get("model_config") or {}, self.model.config.to_dict(), ignored=QUIET
        )
        if changed:
            logger.warning("resuming from %s with changed settings: %s", path, ", ".join(changed))
        self.rng = tree["rng"] if before.get("seed", self.config.seed) == self.config.seed else None

    def _unswap(self) -> None:
        if self.average is not None and self.average.is_swapped:
            self.average.swap(self.model)


def train(
    model: Any,
    data: Any,
    total_steps: int | None = None,
    batch_size: int = DEFAULTS.batch_size,
    sequence_length: int = DEFAULTS.sequence_length,
    learning_rate: float = DEFAULTS.learning_rate,
    grad_clip: float = DEFAULTS.grad_clip,
    output_dir: str = DEFAULTS.output_dir,
    device: str = DEFAULTS.device,
    **kwargs: Any,
) -> Any:
    """Train a model in one line; further keywords are fields of :class:`TrainingConfig`, or
    ``callbacks``.

    Returns:
        The model.
    """
    callbacks = kwargs.pop("callbacks", None)
    fields = {
        "total_steps": DEFAULTS.total_steps if total_steps is None else total_steps,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "learning_rate": learning_rate,
        "grad_clip": grad_clip,
        "output_dir": str(output_dir),
        "device": device,
    }
    return Trainer(model, TrainingConfig.from_dict(fields | kwargs), callbacks).train(data)
