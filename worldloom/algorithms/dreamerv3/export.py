"""One filtering step and one action as a function that can be exported.

Draws per row: ``uniform`` has one number per categorical of the latent and then one per discrete
component of the action, ``normal`` one per continuous component. Legend: N rows, D deter, Z
flattened latent, A encoded action width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.policy import ActingNetworks, DreamerV3Policy, decide
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.policy_step import PolicyStep
from worldloom.core.protocol import Policy
from worldloom.core.specs import ArraySpec

__all__ = ["DreamerV3Step", "make_step"]


class DreamerV3Step(nn.Module):
    """See :class:`worldloom.core.policy_step.PolicyStep`; computes in float32.

    Args:
        policy: Whose weights are copied.
    """

    def __init__(self, policy: DreamerV3Policy) -> None:
        super().__init__()
        self.actor, self.enc, self.dyn = copy.deepcopy(policy.networks)
        del self.dyn.prior, self.dyn.prior_logit  # acting reads no prior
        with torch.no_grad():
            cell = self.dyn.cell_weights(torch.float32)
        for name, value in cell._asdict().items():
            self.register_buffer(f"cell_{name}", value.detach().clone())
        self.classes = policy.config.stoch
        uniform, self.normal = self.actor.draw_width
        self.uniform = self.classes + uniform
        self.carry = {
            "deter": ArraySpec((policy.config.deter,)),
            "stoch": ArraySpec((policy.config.latent,)),
            "action": ArraySpec((self.actor.layout.width,)),
        }

    def forward(
        self,
        obs: Mapping[str, Tensor],
        carry: Mapping[str, Tensor],
        is_first: Tensor,
        uniform: Tensor,
        normal: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.__call__`."""
        cell = CellWeights(*(getattr(self, f"cell_{name}") for name in CellWeights._fields))
        draws = {
            "posterior": uniform[:, : self.classes],
            "uniform": uniform[:, self.classes :],
            "normal": normal,
        }
        given = {f"obs/{name}": value for name, value in obs.items()} | dict(carry) | draws
        networks = ActingNetworks(self.actor, self.enc, self.dyn)
        out = decide(networks, cell, given | {"is_first": is_first})
        after = {name: out[name] for name in self.carry}
        return self.actor.layout.to_env(out["action"]), after

    def noise(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.noise`."""
        uniform = torch.cat([inputs["posterior"], inputs["uniform"]], -1)
        return uniform.numpy(), inputs["normal"].numpy()


def make_step(policy: DreamerV3Policy, *, planner: bool) -> tuple[Policy, PolicyStep]:
    """The policy, and its decision as a step.

    Raises:
        ConfigurationError: If a planner is asked for: the actor is all that acts.
    """
    if planner:
        raise ConfigurationError(
            f"planner: {policy.config.name} acts with its actor and has no planner; leave "
            "--planner out"
        )
    return policy, DreamerV3Step(policy)
