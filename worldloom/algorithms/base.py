"""What all public world models share: checked inputs, imagination, saving and loading, and
the trainer's hooks.

A subclass says how to encode, step and decode; shapes, dtypes and devices are checked here, once.
Legend: B batch, T time, A action.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldloom.algorithms.inputs import InputChecks
from worldloom.algorithms.pretrained import (
    SavedModel,
    allowance_of,
    load_weights,
    open_model,
    save_model,
)
from worldloom.core.config_base import (
    CONFIG_CLASSES,
    MODEL_CLASSES,
    WorldModelConfig,
    check_conflicts,
)
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.fields import Bounds, checked
from worldloom.core.state import LatentState
from worldloom.core.trajectory import Trajectory

__all__ = ["BaseWorldModel", "imagined_returns", "place_of", "torch_generator"]

logger = logging.getLogger(__name__)

DEFAULT_HORIZON = 15
TRAINING_FIELDS = frozenset({"learning_rate", "grad_clip", "dtype"})


def place_of(name: str) -> torch.device:
    """The device that a config names; ``cuda`` and ``auto`` are the CPU on a machine without CUDA.

    Raises:
        ConfigurationError: If there is no such device.
    """
    if name in ("cuda", "auto"):
        if not torch.cuda.is_available() and name == "cuda":
            logger.info("device 'cuda': this machine has none, using the CPU")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device must be auto, cpu, cuda or cuda:N of this machine, got {name!r}"
        ) from error
    return device


def torch_generator(device: torch.device) -> torch.Generator:
    """The global generator of a device, for functions that take one."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or torch.cuda.current_device()]
    return torch.default_generator


def imagined_returns(rewards: Tensor, continues: Tensor | None, discount: float) -> Tensor:
    """Discounted sum of the rewards from each step to the end. All ``[T, B, 1]``.

    ``continues[t]`` is the probability that the episode goes on after action t; None counts as
    certain.
    """
    total = torch.zeros_like(rewards[0])
    found = []
    for t in reversed(range(len(rewards))):
        goes_on = discount if continues is None else discount * continues[t]
        total = rewards[t] + goes_on * total
        found.append(total)
    return torch.stack(found[::-1])


class BaseWorldModel(InputChecks, ABC):
    """Base of the public world models; see :class:`worldloom.core.world_model.WorldModel`.

    Args:
        config: Checked settings.
    """

    tunable: ClassVar[frozenset[str]] = TRAINING_FIELDS
    """Config fields that may change without building the networks again."""

    discount: float = 0.99
    """Per step, of the values of a trajectory where the model has no critics."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config: Any = config

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move the model, as ``to`` and others do, but refuse other dtypes: weights are float32
        whatever products compute in.

        Raises:
            ConfigurationError: Names the dtype, and how to compute in half precision.
        """
        found = {fn(torch.empty(0, dtype=torch.float32)).dtype}
        found |= {p.dtype for p in self.parameters() if p.is_floating_point()}
        wrong = sorted(str(dtype).removeprefix("torch.") for dtype in found - {torch.float32})
        if wrong:
            raise ConfigurationError(
                f"weights of a world model must be float32, got {wrong[0]}; to "
                "compute in half precision create the model with "
                "dtype='bfloat16' (weights stay float32), and leave torch's default "
                "dtype at float32"
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    # -- what a subclass says ----------------------------------------------------------------------

    @abstractmethod
    def _step(self, state: LatentState, action: Tensor, deterministic: bool) -> LatentState:
        """State after checked actions [B, A]."""

    def _stepper(self) -> Callable[[LatentState, Tensor, bool], LatentState]:
        """What makes the steps of one call: may hold what they share, so that nothing of it
        outlives the call in the model.
        """
        return self._step

    @abstractmethod
    def _outcome(
        self, states: list[LatentState], actions: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rewards, what critics say (or None) and continuation [T, B, 1] of T + 1 states and T
        actions.
        """

    def _checkpointed(self) -> Iterable[nn.Module]:
        """Modules whose activations are recomputed when gradient checkpointing is on."""
        return ()

    # -- the shared part of the protocol -----------------------------------------------------------

    def natural_obs(self, obs: Tensor) -> Tensor:
        """Observations ``[..., *obs_shape]`` in the units in which :meth:`decode` gives them: uint8
        as fractions of 255, floats as they are.
        """
        return obs.float() / 255.0 if obs.dtype == torch.uint8 else obs.float()

    def predict(
        self, state: LatentState, action: Tensor, deterministic: bool = False
    ) -> LatentState:
        """State after ``action`` ``[B, A]``, imagined."""
        with self.precision():
            return self._step(
                self._state(state), self._action(action, state.batch_size), deterministic
            )

    def imagine(
        self,
        initial_state: LatentState,
        actions: Tensor | Callable[[LatentState], Tensor],
        deterministic: bool = False,
        *,
        horizon: int | None = None,
    ) -> Trajectory:
        """Follow actions without observations.

        Args:
            initial_state: Where to begin, B rows.
            actions: ``[T, B, A]``, or a policy that maps a state to actions ``[B, A]``.
            deterministic: Take the most likely latents instead of drawing them.
            horizon: T when ``actions`` is a policy; 15 by default. With actions it may only be
                their number.

        Returns:
            T + 1 states and the predicted outcome of each action, in natural units.
        """
        state = self._state(initial_state)
        steps = DEFAULT_HORIZON if horizon is None else checked("horizon", horizon, int, Bounds(1))
        rows = state.batch_size
        states = [state]
        taken = []
        given = None if callable(actions) else self._actions(actions, rows)
        if given is not None and horizon is not None and steps != len(given):
            raise ConfigurationError(
                f"horizon must be {len(given)}, the number of actions, or be left "
                f"out, got {horizon}; give as many actions as steps"
            )
        with self.precision():
            step = self._stepper()
            for t in range(steps if given is None else len(given)):
                action = given[t] if given is not None else self._action(actions(state), rows)  # type: ignore[operator]
                state = step(state, action, deterministic)
                states.append(state)
                taken.append(action)
            joint = given if given is not None else torch.stack(taken)
            rewards, values, continues = self._outcome(states, joint)
        if values is None:
            values = imagined_returns(rewards, continues, self.discount)
        return Trajectory(states, joint, rewards, values, continues)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Compute in the config's dtype; parameters stay float32."""
        dtype = getattr(torch, self.config.dtype)
        if dtype is torch.float32:
            yield
        else:
            with torch.autocast(self.device.type, dtype):
                yield

    # -- the trainer's hooks -----------------------------------------------------------------------

    def parameter_groups(self, config: Any) -> list[dict[str, Any]]:
        """Parameters as an optimizer takes them; ``config`` has ``learning_rate`` and
        ``weight_decay``.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": trained, "lr": config.learning_rate, "weight_decay": config.weight_decay}
        ]

    def after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Called by the trainer after every optimizer step with what ``compute_loss`` returned."""

    def reconfigure(self, **changes: Any) -> None:
        """Change settings that do not decide the shape of the networks.

        Raises:
            ConfigurationError: If a field decides the networks; create a new model then.
        """
        known = self.config.known(changes)
        fixed = sorted(set(known) - self.tunable)
        if fixed:
            allowed = ", ".join(sorted(self.tunable))
            raise ConfigurationError(
                f"{fixed[0]} is built into the networks; create a new model, or "
                f"change one of {allowed}"
            )
        self.config = self.config.replaced(**known)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, more
        time, equal gradients.
        """
        for module in self._checkpointed():
            if "forward" not in vars(module):
                module.forward = functools.partial(_recompute, module.forward)

    # -- files -------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write ``config.json``, ``model.pt`` and ``model.safetensors`` into a folder (made if
        missing; ``~`` is understood).

        The three change as one: a model that was there is replaced whole, or stays when this one
        cannot be saved.

        Raises:
            CheckpointError: If it cannot be written there.
        """
        save_model(path, self.config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, device: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a model that :meth:`save_pretrained` wrote; nothing in the folder is executed.

        Args:
            path: The folder.
            device: Where to load it; by default where the config says.
            **kwargs: Settings that the saved model must have.

        Raises:
            CheckpointError: If a file is missing, corrupt, cut, oversized or foreign.
            ConfigurationError: If a keyword contradicts the saved config.
        """
        with open_model(path) as saved:
            cls._check_kind(saved)
            check_conflicts(saved.folder, saved.config, kwargs)
            with allowance_of(saved):
                model = cls(saved.config.replaced(device=device) if device else saved.config)
            model.load_state_dict(load_weights(saved, model.state_dict()))
        return model

    @classmethod
    def _check_kind(cls, saved: SavedModel) -> None:
        """Refuse to read the model of another class."""
        kind = saved.config.model_type
        own = MODEL_CLASSES.get(kind.lower())
        if own is None and kind.lower() not in CONFIG_CLASSES:
            raise CheckpointError(
                f"{saved.folder}/config.json: model_type {kind!r} is not a model of this library"
            )
        if own is None or not issubclass(cls, own):  # a class that was never imported has no heirs
            held = (
                own.__name__ if own else type(saved.config).__name__.replace("Config", "WorldModel")
            )
            raise CheckpointError(
                f"{saved.folder}: holds a {held}, got a request for a "
                f"{cls.__name__}; load it with create_world_model"
            )


def _recompute(forward: Callable[..., Any], *args: Any) -> Any:
    return (
        checkpoint(forward, *args, use_reentrant=False)
        if torch.is_grad_enabled()
        else forward(*args)
    )
