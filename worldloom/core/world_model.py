"""The one interface of all world models. Legend: B batch, T time, A action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from worldloom.core.config_base import WorldModelConfig
from worldloom.core.state import LatentState
from worldloom.core.trajectory import Trajectory

__all__ = ["WorldModel"]


@runtime_checkable
class WorldModel(Protocol):
    """Unified interface of latent world models; ``isinstance(model, WorldModel)`` asks for the
    methods.
    """

    config: WorldModelConfig

    def encode(self, obs: Tensor, deterministic: bool = False) -> LatentState:
        """Latent state of observations ``[B, *obs_shape]`` at the start of an episode."""

    def predict(
        self, state: LatentState, action: Tensor, deterministic: bool = False
    ) -> LatentState:
        """State after ``action`` ``[B, A]``, imagined."""

    def observe(self, state: LatentState, action: Tensor, obs: Tensor) -> LatentState:
        """State after ``action``, corrected by the observation that arrived."""

    def decode(self, state: LatentState) -> dict[str, Tensor]:
        """Predictions in natural units: ``obs`` ``[B, *obs_shape]``, ``reward`` and ``continue``
        ``[B, 1]``.
        """

    def imagine(
        self,
        initial_state: LatentState,
        actions: Tensor | Callable[[LatentState], Tensor],
        deterministic: bool = False,
    ) -> Trajectory:
        """Follow actions ``[T, B, A]`` without observations."""

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None
    ) -> LatentState:
        """The state before anything was seen."""

    def compute_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """0-d losses of a batch with ``obs, actions, rewards, continues`` ``[B, T, ...]`` aligned
        as Gymnasium does.
        """

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write ``config.json``, ``model.pt`` and ``model.safetensors`` into a folder."""

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], **kwargs: Any) -> WorldModel:
        """Inverse of :meth:`save_pretrained`."""
