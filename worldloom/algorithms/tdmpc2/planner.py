"""MPPI in the latent space, for N environments in one call; a pure function of the latents and the
draws.

What differs from the plain description is only what is not computed twice: the policy sequences do
not change between iterations, so their rollout and return are computed once; at the first step all
sequences of an env share one latent, whose part of the first layer is computed once; and only the
drawn pair of critics is evaluated.

Source: TD-MPC2, arXiv:2310.16828v2, Section 3.2 and the appendix on planning. Shape legend: N envs,
H horizon, P policy sequences, S sequences in all, K elites, I iterations, A action, L latent, M
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.draws import PlanDraws
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.nn.ensemble import ensemble_forward

__all__ = ["Plan", "PlanIteration", "PlannerSettings", "plan"]

WEIGHT_EPS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSettings:
    """Hyper-parameters of the search; the numbers of sequences and iterations are those of the
    draws.
    """

    min_std: float
    max_std: float
    temperature: float


class PlanIteration(NamedTuple):
    """What one iteration found: actions [N, H, S, A], value [N, S], elites [N, K] (best first),
    weight [N, K], mean and std [N, H, A] of the next distribution.
    """

    actions: Tensor
    value: Tensor
    elites: Tensor
    weight: Tensor
    mean: Tensor
    std: Tensor


class Plan(NamedTuple):
    """Result: action [N, A]; mean and std [N, H, A] of the last distribution; choice [N], which
    elite acts.
    """

    action: Tensor
    mean: Tensor
    std: Tensor
    choice: Tensor


class _Rollout(NamedTuple):
    """Where sequences end: latent [N, S, L], return [N, S] so far, weight [N, S] of what
    follows.
    """

    z: Tensor
    total: Tensor
    weight: Tensor


@torch.no_grad()
def plan(
    model: TDMPC2Networks,
    z: Tensor,
    mean: Tensor,
    draws: PlanDraws,
    settings: PlannerSettings,
    discount: Tensor | float,
    *,
    explore: bool,
    task: Tensor | None = None,
    mask: Tensor | None = None,
    watch: Callable[[PlanIteration], None] | None = None,
) -> Plan:
    """Search N action sequences and choose N actions.

    Args:
        model: The networks.
        z: [N, L] latents of the present observations.
        mean: [N, H, A] first mean: the last plan's mean shifted by one step, or zeros at the start
            of an episode.
        draws: All random numbers.
        settings: Hyper-parameters.
        discount: Per decision; a number or [N].
        explore: Add Gaussian noise to the action. Without it the acting elite is still drawn, as
            published.
        task: [N, D] task embeddings, or None.
        mask: [N, A] action masks, or None.
        watch: Called with the result of every iteration (for tests).

    Returns:
        The plan; actions are in [-1, 1].
    """
    search = _Search(
        model,
        z,
        discount,
        None if task is None else task.unsqueeze(1),
        None if mask is None else mask.unsqueeze(1),
    )
    # or the carry would stay poisoned
    policy_actions = search.policy_actions(draws.policy_noise).nan_to_num(0.0)
    policy_end = search.rollout(policy_actions)
    std = torch.full_like(mean, settings.max_std)
    found: PlanIteration | None = None
    for i in range(draws.sample_noise.shape[1]):
        sampled = torch.addcmul(
            mean.unsqueeze(2), std.unsqueeze(2), draws.sample_noise[:, i]
        ).clamp_(-1, 1)
        if mask is not None:
            sampled = sampled * mask[:, None, None]
        ends = (
            torch.cat(pair, 1) for pair in zip(policy_end, search.rollout(sampled), strict=True)
        )
        value = search.value(_Rollout(*ends), draws.terminal_noise[:, i], draws.pairs[:, i])
        actions = torch.cat([policy_actions, sampled], 2)
        found = _refit(actions, value, draws.exponential.shape[1], settings, mask)
        mean = found.mean
        std = found.std
        if watch is not None:
            watch(found)
    assert found is not None  # at least one iteration, PlanShape says
    return _choose(found, draws, explore)


def _refit(
    actions: Tensor, value: Tensor, elites: int, settings: PlannerSettings, mask: Tensor | None
) -> PlanIteration:
    best, index = value.topk(elites, dim=1)
    weight = torch.exp(settings.temperature * (best - best[:, :1]))
    weight = weight / weight.sum(1, keepdim=True)
    chosen = _take(actions, index)  # [N, H, K, A]
    w = weight[:, None, :, None]
    norm = weight.sum(1)[:, None, None] + WEIGHT_EPS
    mean = (w * chosen).sum(2) / norm
    std = (
        ((w * (chosen - mean.unsqueeze(2)).square()).sum(2) / norm)
        .sqrt()
        .clamp(settings.min_std, settings.max_std)
    )
    if mask is not None:
        mean = mean * mask.unsqueeze(1)
        std = std * mask.unsqueeze(1)
    return PlanIteration(actions, value, index, weight, mean, std)


def _choose(found: PlanIteration, draws: PlanDraws, explore: bool) -> Plan:
    choice = (found.weight.log() - draws.exponential.log()).argmax(1)
    index = found.elites.gather(1, choice.unsqueeze(1))
    action = _take(found.actions[:, :1], index)[:, 0, 0]
    if explore:
        action = action + found.std[:, 0] * draws.action_noise
    return Plan(action.clamp(-1, 1), found.mean, found.std, choice)


def _take(actions: Tensor, index: Tensor) -> Tensor:
    """Sequences [N, H, K, A] of ``actions`` [N, H, S, A] at ``index`` [N, K]."""
    horizon = actions.shape[1]
    size = actions.shape[-1]
    return actions.gather(2, index[:, None, :, None].expand(-1, horizon, -1, size))


class _Search:
    """The model as the planner reads it: N envs, one latent each; ``task`` and ``mask`` have an
    axis for the sequences.
    """

    def __init__(
        self,
        model: TDMPC2Networks,
        z: Tensor,
        discount: Tensor | float,
        task: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        self.model = model
        self.z = z.unsqueeze(1)
        self.task = task
        self.mask = mask
        self.discount = discount.unsqueeze(1) if isinstance(discount, Tensor) else discount

    def policy_actions(self, noise: Tensor) -> Tensor:
        """[N, H, P, A] actions of the policy prior, each in the state that the earlier ones lead
        to.
        """
        actions = []
        z = self.z
        for t in range(noise.shape[1]):
            actions.append(self.model.policy(z, noise[:, t], self.task, self.mask).action)
            if t + 1 < noise.shape[1]:
                z = self._next(z, actions[-1])
        return torch.stack(actions, 1)

    def rollout(self, actions: Tensor) -> _Rollout:
        """Follow [N, H, S, A] actions through the model and add up the discounted reward."""
        model = self.model
        z = self.z
        weight = torch.ones_like(actions[:, 0, :, 0])
        total = torch.zeros_like(weight)
        alive = torch.ones_like(weight)
        factor = 1.0
        for t in range(actions.shape[1]):
            total = torch.addcmul(total, weight, self._reward(z, actions[:, t]))
            z = self._next(z, actions[:, t])
            factor = factor * self.discount  # type: ignore[assignment]
            if model.termination is not None:
                alive = alive * (model.termination_logits(z) <= 0)
            weight = alive * factor
        return _Rollout(z, total, weight)

    def value(self, end: _Rollout, noise: Tensor, pairs: Tensor) -> Tensor:
        """[N, S] return of whole sequences, with the drawn pairs [N, 2] of critics after their
        end; NaN counts as 0.
        """
        model = self.model
        envs, samples = end.total.shape
        action = model.policy(end.z, noise, self.task, self.mask).action
        joint = model.joint(end.z, action, self.task)  # [N, S, L+D+A]
        both = joint.unsqueeze(1).expand(-1, 2, -1, -1).reshape(2 * envs, samples, -1)
        layers = [layer.select(pairs.reshape(-1)) for layer in model.critics.stacked]
        q = model.bins.mean(ensemble_forward(layers, both)).view(envs, 2, samples).mean(1)
        return torch.addcmul(end.total, end.weight, q).nan_to_num(0.0)

    def _reward(self, z: Tensor, action: Tensor) -> Tensor:
        head = self.model.reward_head
        return self.model.bins.mean(head.after_first(head.first(self._parts(z, action))))

    def _next(self, z: Tensor, action: Tensor) -> Tensor:
        network = self.model.dynamics
        result: Tensor = network.after_first(network.first(self._parts(z, action)))
        return result

    def _parts(self, z: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the first layer; kept apart where the latent is shared by all sequences."""
        if z.shape[1] != action.shape[1]:
            return (z, action) if self.task is None else (z, self.task, action)
        return (self.model.joint(z, action, self.task),)
