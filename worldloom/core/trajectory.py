"""The result of imagination. Legend: T steps, B batch, A action, F features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloom.core.exceptions import StateError
from worldloom.core.state import LatentState

__all__ = ["Trajectory"]


@dataclass(eq=False, repr=False)
class Trajectory:
    """An imagined rollout.

    Attributes:
        states: T + 1 latent states; the first is where imagination began.
        actions: ``[T, B, A]``; entry t leads from state t to state t + 1.
        rewards: ``[T, B, 1]`` predicted reward of action t, in the environment's units.
        values: ``[T, B, 1]`` predicted return of action t: what critics say where the model has
            some (TD-MPC2), else the discounted sum of the rewards imagined from there to the end of
            the trajectory.
        continues: ``[T, B, 1]`` probability that the episode goes on after action t; None when the
            model predicts none.
    """

    states: list[LatentState]
    actions: Tensor | None
    rewards: Tensor | None = None
    values: Tensor | None = None
    continues: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        parts = {
            name: getattr(self, name) for name in ("actions", "rewards", "values", "continues")
        }
        shown = [
            f"{name} {list(value.shape)}" for name, value in parts.items() if value is not None
        ]
        return f"<Trajectory: {len(self.states)} states, {', '.join(shown)}>"

    @property
    def horizon(self) -> int:
        """T, the number of imagined steps."""
        return len(self.states) - 1

    @property
    def batch_size(self) -> int:
        """B."""
        if not self.states:
            raise StateError("an empty trajectory has no batch size")
        return self.states[0].batch_size

    def to_features_tensor(self) -> Tensor:
        """Features of all states, ``[T + 1, B, F]``."""
        return torch.stack([state.features for state in self.states])

    def _map(
        self, states: Callable[[LatentState], LatentState], tensors: Callable[[Tensor], Tensor]
    ) -> Trajectory:
        parts = (self.actions, self.rewards, self.values, self.continues)
        return Trajectory(
            [states(s) for s in self.states],
            *(None if part is None else tensors(part) for part in parts),
        )

    def to(self, device: torch.device | str) -> Trajectory:
        """The same trajectory on another device."""
        return self._map(lambda state: state.to(device), lambda tensor: tensor.to(device))

    def detach(self) -> Trajectory:
        """The same values without gradient."""
        return self._map(lambda state: state.detach(), lambda tensor: tensor.detach())
