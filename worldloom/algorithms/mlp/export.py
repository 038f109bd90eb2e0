"""The actor's most likely action as a function that can be exported: nothing drawn, nothing
remembered.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from worldloom.algorithms.mlp.planner import ActorOnly
from worldloom.algorithms.mlp.policy import MLPPolicy
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.policy_step import PolicyStep
from worldloom.core.protocol import Policy
from worldloom.core.specs import ArraySpec

__all__ = ["ActorStep", "make_step"]


class ActorStep(nn.Module):
    """See :class:`worldloom.core.policy_step.PolicyStep`.

    Args:
        policy: Whose weights are copied.
    """

    def __init__(self, policy: MLPPolicy) -> None:
        super().__init__()
        self.model = copy.deepcopy(policy.networks.model)
        del self.model.decoder, self.model.dynamics, self.model.reward, self.model.done
        self.actor = copy.deepcopy(policy.networks.actor)
        self.carry: dict[str, ArraySpec] = {}
        self.uniform = self.normal = 0

    def forward(
        self,
        obs: Mapping[str, Tensor],
        carry: Mapping[str, Tensor],
        is_first: Tensor | None,
        uniform: Tensor | None,
        normal: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.__call__`."""
        del carry, is_first, uniform, normal
        action = self.actor.mode(self.actor(self.model.encode(obs)))
        return self.actor.layout.to_env(action), {}

    def noise(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.noise`."""
        nothing = np.zeros((len(next(iter(inputs.values()))), 0), np.float32)
        return nothing, nothing


def make_step(policy: MLPPolicy, *, planner: bool) -> tuple[Policy, PolicyStep]:
    """The policy with its actor alone, and its decision as a step.

    Raises:
        ConfigurationError: If a planner is asked for: searches are not exported.
    """
    if planner:
        raise ConfigurationError(
            f"planner: searches of {policy.config.name} are not exported, its actor is; leave "
            "--planner out"
        )
    return policy.deciding_by(ActorOnly(policy.networks.actor)), ActorStep(policy)
