"""One decision as a function that can be exported: the policy prior alone, or the planner with all
of its draws.

Legend: N rows, H horizon, P policy sequences, S sequences, K elites, I iterations, A action, Q
critics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.algorithms.tdmpc2.agent import TDMPC2Policy
from worldloom.algorithms.tdmpc2.draws import PlanDraws
from worldloom.algorithms.tdmpc2.planner import plan
from worldloom.core.policy_step import PolicyStep
from worldloom.core.protocol import ActOutput, Carry, Policy
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.tasks import check_one_task
from worldloom.nn.shift_crop import SHIFT_PAD

__all__ = ["PlannerStep", "PriorPolicy", "PriorStep", "make_step"]

SHIFTS = 2 * SHIFT_PAD + 1
"""Places that an image may be shifted to, along each axis."""
CHOSEN, OTHERS = (0.1, 0.5), 0.9
"""Keys of the two critics of a pair, in their order, and of those that are not drawn."""


class PriorStep(nn.Module):
    """The mean action of the policy prior: one pass through encoder and policy, nothing drawn and
    nothing remembered; see :class:`worldloom.core.policy_step.PolicyStep`.

    Args:
        policy: Whose weights are copied.
    """

    def __init__(self, policy: TDMPC2Policy) -> None:
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        del self.model.dynamics, self.model.reward_head, self.model.critics, self.model.termination
        self.env = policy.env
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
        z = self.model.encode(obs)
        flat = torch.tanh(self.model.pi(z).chunk(2, -1)[0])
        return _split(flat, self.env), {}

    def noise(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.noise`."""
        nothing = np.zeros((len(next(iter(inputs.values()))), 0), np.float32)
        return nothing, nothing


class PriorPolicy:
    """Acts with the mean of a policy's prior instead of planning; see
    :class:`worldloom.core.protocol.Policy`.

    Args:
        policy: Whose networks act.
    """

    def __init__(self, policy: TDMPC2Policy) -> None:
        self._policy = policy

    def initial_carry(self, num_envs: int) -> Carry:
        """Nothing is remembered."""
        del num_envs
        return {}

    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """The mean action; ``explore`` changes nothing."""
        del carry, is_first, explore
        model = self._policy.model
        with torch.inference_mode():
            z = model.encode({key: torch.as_tensor(np.array(obs[key])) for key in obs})
            noise = z.new_zeros(len(z), model.architecture.action_dim)
            flat = model.policy(z, noise).action
        parts = _split(flat, self._policy.env)
        return ActOutput({key: value.numpy() for key, value in parts.items()}, {})

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these weights from now on."""
        self._policy.load_weights(snapshot)

    def rng_state(self) -> dict[str, Any]:
        """Nothing is drawn."""
        return {}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""


class PlannerStep(nn.Module):
    """One plan of MPPI; see :class:`worldloom.core.policy_step.PolicyStep`.

    ``normal`` has the actions of the policy sequences [H, P, A], the sampled sequences [I, H, S-P,
    A] and the actions after each sequence [I, S, A]; ``uniform`` has a key per iteration and critic
    [I, Q], of which the two smallest are the pair that values the sequences, a chance per elite
    [K], and two places per image.

    Args:
        policy: Whose weights are copied.
    """

    def __init__(self, policy: TDMPC2Policy) -> None:
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        self.env = policy.env
        self.shape = shape = policy.plan_shape
        self.settings = policy.planner
        self.discount = policy.discount
        h, p, s, a = shape.horizon, shape.policy_samples, shape.samples, shape.action_dim
        self.normals = [h * p * a, shape.iterations * h * (s - p) * a, shape.iterations * s * a]
        self.uniforms = [shape.iterations * shape.num_q, shape.elites, 2 * shape.images]
        self.normal = sum(self.normals)
        self.uniform = sum(self.uniforms)
        self.carry = {"prev_mean": ArraySpec((h, a))}

    def forward(
        self,
        obs: Mapping[str, Tensor],
        carry: Mapping[str, Tensor],
        is_first: Tensor,
        uniform: Tensor,
        normal: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.__call__`."""
        draws = self._draws(uniform, normal)
        z = self.model.encode(obs, shift=draws.shift)
        previous = carry["prev_mean"] * (1.0 - is_first.float())[:, None, None]
        mean = torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], 1)
        found = plan(self.model, z, mean, draws, self.settings, self.discount, explore=False)
        return _split(found.action, self.env), {"prev_mean": found.mean}

    def noise(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`worldloom.core.policy_step.PolicyStep.noise`."""
        draws = PlanDraws.from_named(inputs, "draws/")
        keys = torch.full((*draws.pairs.shape[:2], self.shape.num_q), OTHERS)
        keys.scatter_(-1, draws.pairs, torch.tensor(CHOSEN).expand(draws.pairs.shape))
        uniform = [keys.flatten(1), -torch.expm1(-draws.exponential)]
        if draws.shift is not None:
            uniform.append((draws.shift.flatten(1) + 0.5) / SHIFTS)
        normal = (draws.policy_noise, draws.sample_noise, draws.terminal_noise)
        return torch.cat(uniform, 1).numpy(), torch.cat([x.flatten(1) for x in normal], 1).numpy()

    def _draws(self, uniform: Tensor, normal: Tensor) -> PlanDraws:
        s = self.shape
        others = s.samples - s.policy_samples
        first, sampled, last = torch.split(normal, self.normals, 1)
        keys, chance, places = torch.split(uniform, self.uniforms, 1)
        shift = None
        if s.images:
            shift = (places * SHIFTS).long().clamp(0, SHIFTS - 1).view(-1, s.images, 2)
        order = keys.view(-1, s.iterations, s.num_q).topk(2, largest=False).indices
        return PlanDraws(
            # there may be none, and of nothing no -1 can be told
            first.view(first.shape[0], s.horizon, s.policy_samples, s.action_dim),
            sampled.view(-1, s.iterations, s.horizon, others, s.action_dim),
            last.view(-1, s.iterations, s.samples, s.action_dim),
            order,
            -torch.log1p(-chance),
            normal[:, :0],  # nothing is explored
            shift,
        )


def make_step(policy: TDMPC2Policy, *, planner: bool) -> tuple[Policy, PolicyStep]:
    """The policy that acts as the step does, and the step: the planner, or the prior alone.

    Raises:
        ConfigurationError: If it acts in several tasks.
    """
    check_one_task(policy.env, "an exported agent")
    if planner:
        return policy, PlannerStep(policy)
    return PriorPolicy(policy), PriorStep(policy)


def _split(flat: Tensor, env: EnvSpec) -> dict[str, Tensor]:
    """Actions [N, A] per key, as the env's spec has them."""
    parts = torch.split(flat, [spec.size for spec in env.action.values()], -1)
    return {
        key: part.reshape(-1, *spec.shape)
        for (key, spec), part in zip(env.action.items(), parts, strict=True)
    }
