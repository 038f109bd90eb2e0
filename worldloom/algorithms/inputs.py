"""What world models are given: tensors, arrays or lists, checked for shape, dtype and values, and
put on the model's device.

Legend: B batch, T time, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.core.exceptions import ShapeMismatchError, StateError
from worldloom.core.state import LatentState

__all__ = ["InputChecks", "index_of", "tensor_of"]

MAX_PIXEL = 16.0
"""No image in [0, 1], however noisy, has a float beyond this; one in 0..255 that forgot its dtype
has.
"""


class InputChecks(nn.Module):
    """A module that checks what it is given; its config says which shapes it takes."""

    config: Any

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _obs(self, obs: Any, *lead: int | None, name: str = "obs") -> Tensor:
        """Observations on this device, checked: ``lead`` axes (None is any size) and then
        ``obs_shape``.
        """
        tensor = tensor_of(name, obs)
        shape = tuple(tensor.shape)
        want = self.config.obs_shape
        lead = lead or (None,)
        fits = len(shape) == len(lead) + len(want) and shape[len(lead) :] == want
        if not fits or any(n is not None and n != m for n, m in zip(lead, shape, strict=False)):
            hint = self._axis_hint(shape, len(lead)) or f" of {self._own_name()}"
            raise ShapeMismatchError(f"{name}{hint}", _pattern(lead, want), list(shape))
        if 0 in shape[: len(lead)]:
            raise ShapeMismatchError(f"{name}: rows and steps", "at least one of each", list(shape))
        _check_finite(name, tensor)
        if (
            self._reads_images
            and tensor.is_floating_point()
            and tensor.device.type == "cpu"
            and tensor.max() > MAX_PIXEL
        ):
            raise ShapeMismatchError(
                f"range of {name} as floats",
                "[0, 1], or 0..255 as uint8",
                f"up to {float(tensor.max()):.4g}",
            )
        tensor = tensor.to(self.device)
        return tensor if tensor.dtype == torch.uint8 else tensor.float()

    @property
    def _reads_images(self) -> bool:
        """True when observations are pixels."""
        return False

    def _own_name(self) -> str:
        """How errors call this model."""
        c = self.config
        return (
            f"this model ({c.model_type} {c.model_name}, created with "
            f"obs_shape={tuple(c.obs_shape)})"
        )

    def _axis_hint(self, shape: tuple[int, ...], lead: int) -> str:
        """What a wrong observation shape looks like."""
        want = self.config.obs_shape
        if shape == want:
            return " has no batch axis, use obs.unsqueeze(0)"
        inner = shape[lead:]
        if len(want) == 3 and len(inner) == 3 and inner != want:
            if (inner[2], *inner[:2]) == want:
                return (
                    " has its channels on the last axis, use "
                    f"obs.permute({', '.join(map(str, _moved(lead, last=True)))})"
                )
            if (*inner[1:], inner[0]) == want:
                return (
                    " has its channels first, use "
                    f"obs.permute({', '.join(map(str, _moved(lead, last=False)))})"
                )
        return ""

    def _action(self, action: Any, rows: int | None, *lead: int, name: str = "action") -> Tensor:
        """Actions ``[..., B, A]`` on this device; integers become one-hot codes when actions are
        discrete.
        """
        tensor = tensor_of(name, action)
        width = self.config.action_dim
        lacks_axis = tensor.ndim == 1 + len(lead)
        is_index = not tensor.is_floating_point() and (
            lacks_axis or (tensor.shape[-1:] == (1,) and width > 1)
        )
        if self.config.action_type == "discrete" and is_index:
            index = tensor if lacks_axis else tensor.squeeze(-1)
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < width):
                found = sorted(set(index.flatten().tolist()))
                raise ShapeMismatchError(
                    f"{name} of a discrete model", f"integers in 0..{width - 1}", found
                )
            tensor = nn.functional.one_hot(index.long(), width)
        want = (*lead, rows, width)
        is_wrong = tensor.ndim != len(want) or any(
            n is not None and n != m for n, m in zip(want, tensor.shape, strict=True)
        )
        if is_wrong:
            names = ["B" if n is None else n for n in want]
            raise ShapeMismatchError(
                f"{name} (this model was created with action_dim={width})",
                names,
                list(tensor.shape),
            )
        _check_finite(name, tensor)
        return tensor.to(self.device).float()

    def _actions(self, actions: Any, rows: int) -> Tensor:
        """Action sequences [T, B, A]."""
        tensor = tensor_of("actions", actions)
        if tensor.ndim < 2 or not len(tensor):
            want = ["T >= 1", rows, self.config.action_dim]
            raise ShapeMismatchError("actions of imagine", want, list(tensor.shape))
        return self._action(tensor, rows, len(tensor), name="actions")

    def _state(self, state: LatentState) -> LatentState:
        if not isinstance(state, LatentState):
            raise StateError(
                "state must be a LatentState (from encode or initial_state), got "
                f"{type(state).__name__}"
            )
        deter = state.deterministic
        if deter is not None and deter.ndim != 2:
            hint = (
                "; keep the batch axis with state[0:1]"
                if deter.ndim == 1
                else "; take one step, state[t]"
            )
            raise ShapeMismatchError(
                f"deterministic part of a state{hint}", ["B", deter.shape[-1]], list(deter.shape)
            )
        state = state if state.device == self.device else state.to(self.device)
        return state if deter is None or deter.dtype == torch.float32 else state.float()

    def _batch(
        self, batch: Mapping[str, Any], *, needs_continues: bool = True
    ) -> dict[str, Tensor]:
        """A training batch on this device, checked; ``continues`` is filled with ones where it may
        be missing.
        """
        missing = [key for key in ("obs", "actions", "rewards") if key not in batch]
        missing += ["continues"] if needs_continues and "continues" not in batch else []
        if missing:
            raise ShapeMismatchError(
                "keys of a batch", ["obs", "actions", "rewards", "continues"], sorted(batch)
            )
        obs = self._obs(batch["obs"], None, None)
        lead = tuple(obs.shape[:2])
        result = {
            "obs": obs,
            "actions": self._action(batch["actions"], lead[1], lead[0], name="actions"),
        }
        for key in ("rewards", "continues"):
            value = tensor_of(key, batch[key]) if key in batch else torch.ones(lead)
            value = value.squeeze(-1) if value.ndim == 3 else value
            if tuple(value.shape) != lead:
                raise ShapeMismatchError(f"{key} of a batch", list(lead), list(value.shape))
            _check_finite(key, value)
            result[key] = value.to(self.device).float()
        if "last_obs" in batch:
            last = result["last_obs"] = self._obs(batch["last_obs"], lead[0], name="last_obs")
            if last.dtype != obs.dtype:  # one of the two would be read in units of the other
                raise ShapeMismatchError(
                    "dtype of last_obs (give it as obs is)", obs.dtype, last.dtype
                )
            mask = tensor_of(
                "last_obs_mask", batch.get("last_obs_mask", torch.ones(lead[0], dtype=torch.bool))
            )
            if tuple(mask.shape) != lead[:1]:
                raise ShapeMismatchError(
                    "last_obs_mask of a batch", list(lead[:1]), list(mask.shape)
                )
            result["last_obs_mask"] = mask.to(self.device).bool()
        return result


def tensor_of(name: str, value: Any) -> Tensor:
    """What a user gave as a tensor of numbers."""
    if isinstance(value, np.ndarray) and (
        not value.flags.writeable or any(stride < 0 for stride in value.strides)
    ):
        value = value.copy()  # torch takes neither
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise ShapeMismatchError(
            f"dtype of {name}", "numbers in a tensor, an array or a list of equal rows", str(kind)
        ) from error
    if tensor.is_complex():
        raise ShapeMismatchError(f"dtype of {name}", "uint8, integer or real", str(tensor.dtype))
    return tensor


def index_of(name: str, value: Any, rows: int, count: int) -> Tensor:
    """Integers [rows] in 0..count - 1, given as one for all rows or as one each.

    Raises:
        ShapeMismatchError: If it is something else.
    """
    index = tensor_of(name, value)
    if (
        index.is_floating_point()
        or index.dtype == torch.bool
        or tuple(index.shape) not in ((), (rows,))
    ):
        raise ShapeMismatchError(
            name, f"an integer, or {rows} of them", f"{index.dtype} {list(index.shape)}"
        )
    if bool(((index < 0) | (index >= count)).any()):
        raise ShapeMismatchError(name, f"0..{count - 1}", sorted(set(index.flatten().tolist())))
    return index.long().expand(rows)


def _check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity; tensors on an accelerator are not read, because that would wait for
    the device.
    """
    if (
        tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and not bool(torch.isfinite(tensor).all())
    ):
        count = int((~torch.isfinite(tensor)).sum())
        raise ShapeMismatchError(
            f"values of {name}",
            "finite numbers",
            f"{count} that are NaN or infinite; clean the data",
        )


def _moved(lead: int, *, last: bool) -> list[int]:
    """The permutation that moves the channel axis where it belongs."""
    axes = [lead + 2, lead, lead + 1] if last else [lead + 1, lead + 2, lead]
    return [*range(lead), *axes]


def _pattern(lead: tuple[int | None, ...], shape: tuple[int, ...]) -> list[Any]:
    names = ["B", "T"]
    return [names[i] if n is None else n for i, n in enumerate(lead)] + list(shape)
