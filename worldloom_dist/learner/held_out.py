"""Losses on data that is never trained on, beside those of training: where they part, the agent
learns its data by heart.

A twin of the agent takes its state and makes one update on held-out windows, whose losses count and
whose result is thrown away. The agent that trains, its random draws included, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worldloom.core.protocol import Agent
from worldloom.data.windows import SampledWindows
from worldloom_dist.learner.staging import Stager
from worldloom_dist.metrics.names import scalar_keys

__all__ = ["HeldOutLosses"]

LOSS = "loss{name="


class HeldOutLosses:
    """Measures them now and then.

    Args:
        make_twin: Makes an agent as the one that trains.
        draw: Held-out windows, the same ones at every call, so that a curve shows the agent alone.
        every: Updates between two measurements.
        device: Of both agents.
    """

    def __init__(
        self,
        make_twin: Callable[[], Agent],
        draw: Callable[[], SampledWindows],
        every: int,
        device: str,
    ) -> None:
        self._make_twin = make_twin
        self.draw = draw
        self._every = every
        self._device = device
        self._twin: Agent | None = None

    def is_due(self, train_steps: int) -> bool:
        """True after the first update, and whenever the interval is over."""
        return train_steps == 1 or train_steps % self._every == 0

    def measure(self, agent: Agent) -> dict[str, float]:
        """Every loss as ``loss{name=held_out/NAME}``; the agent and global random states stay as
        they are.
        """
        with torch.random.fork_rng():
            if self._twin is None:
                self._twin = self._make_twin()
            self._twin.load_state_dict(agent.state_dict())
            stager = Stager(self._device)
            output = self._twin.train_step(stager.take(stager.stage(self.draw())))
        found: dict[str, Any] = {
            key.replace(LOSS, f"{LOSS}held_out/", 1): value
            for name, value in output.metrics.items()
            for key in scalar_keys(name, {})
            if key.startswith(LOSS)
        }
        return {key: float(value) for key, value in found.items()}
