"""What all public world models share: the door for tensors, imagination, saving and loading, and the trainer's hooks.

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

from worldloom.core.config import WorldModelConfig
from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError, StateError
from worldloom.core.registry import WorldModelRegistry
from worldloom.core.state import LatentState
from worldloom.core.trajectory import Trajectory
from worldloom.models.pretrained import SavedModel, check_conflicts, load_weights, open_model, save_model

__all__ = ["BaseWorldModel", "imagined_returns", "place_of", "torch_generator"]

logger = logging.getLogger(__name__)

DEFAULT_HORIZON = 15
MAX_PIXEL = 16.0
"""No image in [0, 1], however noisy, has a float beyond this; one in 0..255 that forgot its dtype has."""
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
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N of this machine, got {name!r}") from error
    return device


def torch_generator(device: torch.device) -> torch.Generator:
    """The global generator of a device, for functions that take one."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or torch.cuda.current_device()]
    return torch.default_generator


def imagined_returns(rewards: Tensor, continues: Tensor | None, discount: float) -> Tensor:
    """Discounted sum of the rewards from each step to the end. All ``[T, B, 1]``.

    ``continues[t]`` is the probability that the episode goes on behind action t; None counts as certain.
    """
    total, found = torch.zeros_like(rewards[0]), []
    for t in reversed(range(len(rewards))):
        goes_on = discount if continues is None else discount * continues[t]
        total = rewards[t] + goes_on * total
        found.append(total)
    return torch.stack(found[::-1])


class BaseWorldModel(nn.Module, ABC):
    """Base of the public world models; see :class:`worldloom.core.world_model.WorldModel`.

    Args:
        config: Checked settings.
    """

    tunable: ClassVar[frozenset[str]] = TRAINING_FIELDS
    """Config fields that may change without building the networks anew."""
    discount: ClassVar[float] = 0.99
    """Per step, of the values of a trajectory where the model has no critics."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config: Any = config

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def _step(self, state: LatentState, action: Tensor, deterministic: bool) -> LatentState:
        """State behind checked actions [B, A]."""

    @abstractmethod
    def _outcome(self, states: list[LatentState], actions: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rewards, what critics say (or None) and continuation [T, B, 1] of T + 1 states and T actions."""

    def _checkpointed(self) -> Iterable[nn.Module]:
        """Modules whose activations are recomputed when gradient checkpointing is on."""
        return ()

    # -- the shared part of the protocol ----------------------------------------------------------------------------

    def predict(self, state: LatentState, action: Tensor, deterministic: bool = False) -> LatentState:
        """State behind ``action`` ``[B, A]``, imagined."""
        with self.precision():
            return self._step(self._state(state), self._action(action, state.batch_size), deterministic)

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
            horizon: T when ``actions`` is a policy; 15 by default.

        Returns:
            T + 1 states and the predicted outcome of each action, in natural units.
        """
        state = self._state(initial_state)
        if horizon is not None and horizon < 1:
            raise ConfigurationError(f"horizon must be >= 1, got {horizon}; it is the number of steps to imagine")
        rows, states, taken = state.batch_size, [state], []
        given = None if callable(actions) else self._actions(actions, rows)
        with self.precision():
            for t in range(len(given) if given is not None else horizon or DEFAULT_HORIZON):
                action = given[t] if given is not None else self._action(actions(state), rows)  # type: ignore[operator]
                state = self._step(state, action, deterministic)
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

    # -- the door ---------------------------------------------------------------------------------------------------

    def _obs(self, obs: Any, *lead: int | None, name: str = "obs") -> Tensor:
        """Observations on this device, checked: ``lead`` axes (None is any size) and then ``obs_shape``."""
        tensor = _tensor(name, obs)
        shape, want = tuple(tensor.shape), self.config.obs_shape
        lead = lead or (None,)
        fits = len(shape) == len(lead) + len(want) and shape[len(lead) :] == want
        if not fits or any(n is not None and n != m for n, m in zip(lead, shape, strict=False)):
            hint = self._axis_hint(shape, len(lead)) or f" of {self._own_name()}"
            raise ShapeMismatchError(f"{name}{hint}", _pattern(lead, want), list(shape))
        if tensor.is_complex():
            raise ShapeMismatchError(f"dtype of {name}", "uint8, integer or real", str(tensor.dtype))
        _check_finite(name, tensor)
        if self._reads_images and tensor.is_floating_point() and tensor.device.type == "cpu" and tensor.max() > MAX_PIXEL:
            raise ShapeMismatchError(f"range of {name} as floats", "[0, 1], or 0..255 as uint8", f"up to {float(tensor.max()):.4g}")
        tensor = tensor.to(self.device)
        return tensor if tensor.dtype == torch.uint8 else tensor.float()

    @property
    def _reads_images(self) -> bool:
        """True when observations are pixels."""
        return False

    def _own_name(self) -> str:
        """How errors call this model."""
        c = self.config
        return f"this model ({c.model_type} {c.model_name}, created with obs_shape={tuple(c.obs_shape)})"

    def _axis_hint(self, shape: tuple[int, ...], lead: int) -> str:
        """What a wrong observation shape looks like."""
        want = self.config.obs_shape
        if shape == want:
            return " has no batch axis, use obs.unsqueeze(0)"
        inner = shape[lead:]
        if len(want) == 3 and len(inner) == 3 and inner != want:
            if (inner[2], *inner[:2]) == want:
                return f" has its channels on the last axis, use obs.permute({', '.join(map(str, _moved(lead, last=True)))})"
            if (*inner[1:], inner[0]) == want:
                return f" has its channels first, use obs.permute({', '.join(map(str, _moved(lead, last=False)))})"
        return ""

    def _action(self, action: Any, rows: int | None, *lead: int, name: str = "action") -> Tensor:
        """Actions ``[..., B, A]`` on this device; integers become one-hot codes when actions are discrete."""
        tensor, width = _tensor(name, action), self.config.action_dim
        lacks_axis = tensor.ndim == 1 + len(lead)
        is_index = not tensor.is_floating_point() and (lacks_axis or (tensor.shape[-1:] == (1,) and width > 1))
        if self.config.action_type == "discrete" and is_index:
            index = tensor if lacks_axis else tensor.squeeze(-1)
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < width):
                found = sorted(set(index.flatten().tolist()))
                raise ShapeMismatchError(f"{name} of a discrete model", f"integers in 0..{width - 1}", found)
            tensor = nn.functional.one_hot(index.long(), width)
        want = (*lead, rows, width)
        is_wrong = tensor.ndim != len(want) or any(n is not None and n != m for n, m in zip(want, tensor.shape, strict=True))
        if is_wrong:
            names = ["B" if n is None else n for n in want]
            raise ShapeMismatchError(f"{name} (this model was created with action_dim={width})", names, list(tensor.shape))
        _check_finite(name, tensor)
        return tensor.to(self.device).float()

    def _actions(self, actions: Any, rows: int) -> Tensor:
        """Action sequences [T, B, A]."""
        tensor = _tensor("actions", actions)
        if tensor.ndim < 2 or not len(tensor):
            want = ["T >= 1", rows, self.config.action_dim]
            raise ShapeMismatchError("actions of imagine", want, list(tensor.shape))
        return self._action(tensor, rows, len(tensor), name="actions")

    def _state(self, state: LatentState) -> LatentState:
        if not isinstance(state, LatentState):
            raise StateError(f"state must be a LatentState (from encode or initial_state), got {type(state).__name__}")
        return state if state.device == self.device else state.to(self.device)

    def _batch(self, batch: Mapping[str, Any], *, needs_continues: bool = True) -> dict[str, Tensor]:
        """A training batch on this device, checked; ``continues`` is filled with ones where it may be missing."""
        missing = [key for key in ("obs", "actions", "rewards") if key not in batch]
        missing += ["continues"] if needs_continues and "continues" not in batch else []
        if missing:
            raise ShapeMismatchError("keys of a batch", ["obs", "actions", "rewards", "continues"], sorted(batch))
        obs = self._obs(batch["obs"], None, None)
        lead = tuple(obs.shape[:2])
        result = {"obs": obs, "actions": self._action(batch["actions"], lead[1], lead[0], name="actions")}
        for key in ("rewards", "continues"):
            value = _tensor(key, batch[key]) if key in batch else torch.ones(lead)
            value = value.squeeze(-1) if value.ndim == 3 else value
            if tuple(value.shape) != lead:
                raise ShapeMismatchError(f"{key} of a batch", list(lead), list(value.shape))
            _check_finite(key, value)
            result[key] = value.to(self.device).float()
        if "last_obs" in batch:
            result["last_obs"] = self._obs(batch["last_obs"], lead[0], name="last_obs")
            mask = batch.get("last_obs_mask", torch.ones(lead[0], dtype=torch.bool))
            result["last_obs_mask"] = torch.as_tensor(mask).to(self.device).bool()
        return result

    # -- the trainer's hooks ----------------------------------------------------------------------------------------

    def parameter_groups(self, config: Any) -> list[dict[str, Any]]:
        """Parameters as an optimizer takes them; ``config`` has ``learning_rate`` and ``weight_decay``."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [{"params": trained, "lr": config.learning_rate, "weight_decay": config.weight_decay}]

    def after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Called by the trainer behind every optimizer step with what ``compute_loss`` returned."""

    def reconfigure(self, **changes: Any) -> None:
        """Change settings that do not decide the shape of the networks.

        Raises:
            ConfigurationError: If a field decides the networks; create a new model then.
        """
        known = self.config.known(changes)
        fixed = sorted(set(known) - self.tunable)
        if fixed:
            allowed = ", ".join(sorted(self.tunable))
            raise ConfigurationError(f"{fixed[0]} is built into the networks; create a new model, or change one of {allowed}")
        self.config = self.config.replaced(**known)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, more time, equal gradients."""
        for module in self._checkpointed():
            if "forward" not in vars(module):
                module.forward = functools.partial(_recompute, module.forward)

    # -- files ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write ``config.json``, ``model.pt`` and ``model.safetensors`` into a folder (made if missing; ``~`` is understood).

        The three change as one: a model that was there is replaced whole, or stays when this one cannot be saved.

        Raises:
            CheckpointError: If it cannot be written there.
        """
        save_model(path, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], *, device: str | None = None, **kwargs: Any) -> Self:
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
            model = cls(saved.config.replaced(device=device) if device else saved.config)
            model.load_state_dict(load_weights(saved, model.state_dict()))
        return model

    @classmethod
    def _check_kind(cls, saved: SavedModel) -> None:
        """Refuse to read the model of another class."""
        kind = saved.config.model_type
        if type(saved.config) is WorldModelConfig and kind.lower() not in WorldModelRegistry.list_models():
            raise CheckpointError(f"{saved.folder}/config.json: model_type {kind!r} is not a model of this library")
        own = WorldModelRegistry.model_class(kind)
        if not issubclass(cls, own):
            raise CheckpointError(
                f"{saved.folder}: holds a {own.__name__}, got a request for a {cls.__name__}; load it with create_world_model"
            )


def _recompute(forward: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)


def _tensor(name: str, value: Any) -> Tensor:
    """What a user gave as a tensor of numbers."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise ShapeMismatchError(f"dtype of {name}", "numbers in a tensor, an array or a list of equal rows", str(kind)) from error


def _check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity; tensors on an accelerator are not read, because that would wait for the device."""
    if tensor.device.type == "cpu" and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise ShapeMismatchError(f"values of {name}", "finite numbers", f"{count} that are NaN or infinite; clean the data")


def _moved(lead: int, *, last: bool) -> list[int]:
    """The permutation that moves the channel axis where it belongs."""
    axes = [lead + 2, lead, lead + 1] if last else [lead + 1, lead + 2, lead]
    return [*range(lead), *axes]


def _pattern(lead: tuple[int | None, ...], shape: tuple[int, ...]) -> list[Any]:
    names = ["B", "T"]
    return [names[i] if n is None else n for i, n in enumerate(lead)] + list(shape)
