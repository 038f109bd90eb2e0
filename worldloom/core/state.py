"""Latent states as the public API shows them. Networks have their own small tuples inside; this is
the public face only.

Legend: B batch, T time, S categoricals, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.core.exceptions import ShapeMismatchError, StateError
from worldloom.core.state_kinds import DynamicsType, LatentType

__all__ = ["DynamicsType", "LatentState", "LatentType", "Predictions"]


def _plain(value: Any) -> Any:
    """Tensors in place of states and predictions, at any depth of arguments."""
    if isinstance(value, LatentState):
        return value.features
    if isinstance(value, Predictions):
        return value["obs"]
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return (
        {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value
    )


def _call_plain(
    function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any] | None
) -> Any:
    return function(
        *(_plain(arg) for arg in args),
        **{name: _plain(arg) for name, arg in (kwargs or {}).items()},
    )


@dataclass(eq=False, repr=False)
class LatentState:
    """A batch of latent states. A torch function that gets one (``mse_loss(state, target)``) reads
    its ``features``.

    Every part may have a leading time axis (``[T, B, D]``), as :meth:`stack` makes it;
    ``deterministic`` tells it apart.

    Attributes:
        deterministic: ``[B, D]`` history.
        stochastic: ``[B, Z]`` or ``[B, S, C]`` sampled part.
        logits: Of the distribution that ``stochastic`` was drawn from.
        mean, std: Of a Gaussian latent.
        prior_logits, posterior_logits: ``[B, S, C]`` before and after seeing the observation.
        codebook_indices, commitment_loss: Of a vector-quantised latent.
        latent_type: A :class:`LatentType` or its name.
        metadata: Anything a caller wants to keep beside it, such as the ``task_id`` of each row.

    Raises:
        StateError: If deterministic, stochastic and codebook_indices are all missing.
    """

    deterministic: Tensor | None = None
    stochastic: Tensor | None = None
    logits: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    prior_logits: Tensor | None = None
    posterior_logits: Tensor | None = None
    codebook_indices: Tensor | None = None
    commitment_loss: Tensor | None = None
    latent_type: str = LatentType.DETERMINISTIC
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.deterministic is None and self.stochastic is None and self.codebook_indices is None:
            raise StateError(
                "a LatentState needs deterministic, stochastic or codebook_indices; "
                "got none of them"
            )

    def __repr__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [
            f"{name} {list(value.shape)}"
            for name, value in parts.items()
            if isinstance(value, Tensor)
        ]
        return (
            f"<LatentState {getattr(self.latent_type, 'value', self.latent_type)}: "
            f"{', '.join(shown)}>"
        )

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Iterable[type],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let torch functions read the features."""
        return _call_plain(function, args, kwargs)

    @property
    def features(self) -> Tensor:
        """Deterministic and flattened stochastic part side by side, ``[B, F]``: what downstream
        networks read.

        With a leading time axis ``[T, B, F]``.

        Raises:
            StateError: If the stochastic part has more axes than batch, categoricals and classes,
                or there is neither part.
            ShapeMismatchError: If the two parts differ in batch size.
        """
        deter = self.deterministic
        stoch = self.stochastic
        if deter is None and stoch is None:
            raise StateError(
                "features need a deterministic or a stochastic part; this state has "
                "codebook indices only"
            )
        if stoch is None:
            return deter  # type: ignore[return-value]  # one of them is there
        lead = 1 if deter is None else deter.ndim - 1
        if stoch.ndim > lead + 2:
            raise StateError(
                f"stochastic must have at most {lead + 2} axes [..., S, C] to be "
                f"flattened, got {stoch.ndim}"
            )
        if deter is None:
            return stoch.flatten(1)
        if deter.shape[:-1] != stoch.shape[:lead]:
            raise ShapeMismatchError(
                "stochastic part of a state", tuple(deter.shape[:-1]), tuple(stoch.shape[:lead])
            )
        return torch.cat([deter, stoch.flatten(lead)], -1)

    @property
    def _first(self) -> Tensor:
        parts = (self.deterministic, self.stochastic, self.codebook_indices)
        return next(part for part in parts if part is not None)

    @property
    def batch_size(self) -> int:
        """B."""
        return int(self._first.shape[self._batch_axis])

    @property
    def _batch_axis(self) -> int:
        """1 where a time axis leads, else 0."""
        return int(self.deterministic is not None and self.deterministic.ndim > 2)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._first.device

    @property
    def feature_dim(self) -> int:
        """F, the width of :attr:`features`."""
        return int(self.features.shape[-1])

    def _map(self, function: Callable[[Tensor], Tensor]) -> LatentState:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: function(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        metadata = {
            name: function(value) if isinstance(value, Tensor) else value
            for name, value in self.metadata.items()
        }
        return replace(self, **(changed | {"metadata": metadata}))

    def to(self, device: torch.device | str) -> LatentState:
        """The same state on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def float(self) -> LatentState:
        """The same state with every part of floating point in float32."""
        return self._map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def detach(self) -> LatentState:
        """The same values without gradient."""
        return self._map(lambda tensor: tensor.detach())

    def clone(self) -> LatentState:
        """A copy that shares no memory."""
        return self._map(lambda tensor: tensor.clone())

    def __getitem__(self, index: Any) -> LatentState:
        """Some of the rows, or of the steps when there is a time axis: every part indexed alike.

        Rows take their own along of what ``metadata`` holds for each of them: tensors, arrays and
        lists of :attr:`batch_size` entries.
        """
        parts = replace(self, metadata={})._map(lambda tensor: tensor[index])
        axes = index if isinstance(index, tuple) else (index,)
        rows = axes[self._batch_axis :][:1]
        metadata = self.metadata if not rows else self._metadata_of(rows[0])
        return replace(parts, metadata=dict(metadata))

    def _metadata_of(self, rows: Any) -> dict[str, Any]:
        """What is kept beside some of the rows."""
        size = self.batch_size
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        chosen = torch.arange(size)[rows]
        result = dict(self.metadata)
        for name, value in self.metadata.items():
            if isinstance(value, Tensor | np.ndarray) and value.shape[:1] == (size,):
                result[name] = value[chosen if isinstance(value, Tensor) else chosen.numpy()]
            elif type(value) in (list, tuple) and len(value) == size:
                picked = [value[i] for i in chosen.reshape(-1).tolist()]
                result[name] = type(value)(picked) if chosen.ndim else picked[0]
        return result

    @classmethod
    def stack(cls, states: Sequence[LatentState]) -> LatentState:
        """States of successive steps as one with a leading time axis; parts that any of them lacks
        are left out.

        Raises:
            StateError: If there are none, or one has no deterministic part (nothing could tell its
                axes apart).
        """
        if not states or any(state.deterministic is None for state in states):
            raise StateError(
                f"stack needs one or more states with a deterministic part, got {len(states)}"
            )
        parts = {f.name: [getattr(state, f.name) for state in states] for f in fields(cls)}
        whole = {
            name: torch.stack(values)
            for name, values in parts.items()
            if all(isinstance(v, Tensor) for v in values)
        }
        first = states[0]
        return cls(**whole, latent_type=first.latent_type, metadata=dict(first.metadata))


class Predictions(dict[str, Tensor]):
    """What ``decode`` returns: a dict (``obs``, ``reward``, ``continue``, ...). A torch function
    that gets one reads ``obs``.
    """

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Iterable[type],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let torch functions read the reconstruction."""
        return _call_plain(function, args, kwargs)
