"""How the agent decides: ask the actor, or search sequences of actions in imagination, batched over
envs.

A search is a function of networks, latents and draws; it draws nothing itself. Legend: N envs, S
sequences, P of them proposed by the actor, H steps, A encoded action, K members, L latent.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from worldloom.algorithms.mlp.mcts import TreeSearch
from worldloom.algorithms.mlp.model import Networks, disagreement
from worldloom.algorithms.mlp.spec import MLPAgentConfig
from worldloom.nn.actor import Actor
from worldloom.nn.layout import ActionLayout, one_hot_groups

__all__ = ["ActorOnly", "Search", "SequenceSearch", "make_search", "sequence_values"]

MIN_STD = 0.05
"""Smallest spread of the sequences that cem draws."""


class Search(Protocol):
    """Chooses actions of N envs from their latents.

    Attributes:
        num_uniform, num_normal: Draws that one decision takes per env.
    """

    num_uniform: int
    num_normal: int

    def __call__(
        self, networks: Networks, latent: Tensor, uniform: Tensor, normal: Tensor, *, explore: bool
    ) -> Tensor:
        """Encoded actions [N, A] from latents [N, L] and draws [N, ...]."""


class ActorOnly:
    """The actor's action: drawn to explore, else the most likely one."""

    def __init__(self, actor: Actor) -> None:
        self.num_uniform, self.num_normal = actor.draw_width

    def __call__(
        self, networks: Networks, latent: Tensor, uniform: Tensor, normal: Tensor, *, explore: bool
    ) -> Tensor:
        """See :class:`Search`."""
        out = networks.actor(latent)
        return networks.actor.sample(out, uniform, normal) if explore else networks.actor.mode(out)


class SequenceSearch:
    """Random shooting and the cross-entropy method with the critic at the end of every sequence.

    The actor proposes some sequences, the others are uniform at first. With more than one iteration
    a Gaussian is fitted to the best ones and drawn from, and the best so far stay. Classes are
    chosen by the largest of their numbers, as in :func:`worldloom.algorithms.mlp.planning.plan`.

    Args:
        config: Sizes of the search, discount and bonus.
        layout, actor: Of the actions.
        iterations: 1 is random shooting.
    """

    def __init__(
        self, config: MLPAgentConfig, layout: ActionLayout, actor: Actor, *, iterations: int
    ) -> None:
        self.config = config
        self.layout = layout
        self.iterations = iterations
        self.shape = (config.num_samples, config.plan_horizon, layout.width)
        self.fresh = config.num_samples - config.num_policy_samples
        widths = actor.draw_width
        proposals = config.num_policy_samples * config.plan_horizon
        self.proposal_shapes = [(config.num_policy_samples, config.plan_horizon, w) for w in widths]
        numbers = config.plan_horizon * layout.width
        self.num_uniform = 1 + self.fresh * numbers + proposals * widths[0]
        self.num_normal = (iterations - 1) * self.shape[0] * numbers + proposals * widths[1]

    def __call__(
        self, networks: Networks, latent: Tensor, uniform: Tensor, normal: Tensor, *, explore: bool
    ) -> Tensor:
        """See :class:`Search`. To explore, one of the elites is drawn instead of the best."""
        config = self.config
        rows = len(latent)
        samples, horizon, width = self.shape
        free = self.fresh * horizon * width
        refits = (self.iterations - 1) * samples * horizon * width
        choice, random, chosen = torch.split(uniform, [1, free, self.num_uniform - 1 - free], 1)
        jitter, noise = torch.split(normal, [self.num_normal - refits, refits], 1)
        sequences = random.view(rows, self.fresh, horizon, width) * 2 - 1
        if config.num_policy_samples:
            shapes = self.proposal_shapes
            proposed = self._proposals(
                networks, latent, chosen.view(rows, *shapes[0]), jitter.view(rows, *shapes[1])
            )
            sequences = torch.cat([proposed, sequences], 1)
        bonus = config.search_bonus(explore=explore)
        value = self._values(networks, latent, sequences, bonus)
        noise = noise.view(rows, self.iterations - 1, samples, horizon, width)
        for i in range(self.iterations - 1):
            elites = _best(sequences, value, config.num_elites)
            mean = elites.mean(1, keepdim=True)
            std = elites.std(1, keepdim=True, correction=0).clamp(min=MIN_STD)
            drawn = (mean + std * noise[:, i, config.num_elites :]).clamp(-1, 1)
            sequences = torch.cat([elites, drawn], 1)
            value = self._values(networks, latent, sequences, bonus)
        best = _best(sequences[:, :, :1], value, config.num_elites)[:, :, 0]
        index = (choice * config.num_elites).long() if explore else torch.zeros_like(choice).long()
        picked = best.gather(1, index[:, :, None].expand(-1, -1, width)).squeeze(1)
        return self._legal(picked)

    def _proposals(
        self, networks: Networks, latent: Tensor, uniform: Tensor, normal: Tensor
    ) -> Tensor:
        """Sequences [N, P, H, A] of the actor, which follows the members' mean."""
        rows, count, horizon = uniform.shape[:3]
        state = latent.repeat_interleave(count, 0)
        actions = []
        for t in range(horizon):
            out = networks.actor(state)
            action = networks.actor.sample(
                out, uniform[:, :, t].flatten(0, 1), normal[:, :, t].flatten(0, 1)
            ).clamp(-1, 1)
            actions.append(action)
            if t + 1 < horizon:
                state = networks.model.next(state, action).mean(0)
        return torch.stack(actions, 1).view(rows, count, horizon, -1)

    def _values(
        self, networks: Networks, latent: Tensor, sequences: Tensor, bonus: float
    ) -> Tensor:
        return sequence_values(
            networks,
            latent,
            self._legal(sequences),
            discount=self.config.discount or 1.0,
            bonus=bonus,
        )

    def _legal(self, numbers: Tensor) -> Tensor:
        """Encoded actions that numbers in [-1, 1] stand for. [..., A]."""
        if all(not key.classes for key in self.layout.keys):
            return numbers
        parts = []
        split = torch.split(numbers, [key.width for key in self.layout.keys], -1)
        for key, part in zip(self.layout.keys, split, strict=True):
            if not key.classes:
                parts.append(part)
                continue
            for group in torch.split(part, list(key.classes), -1):
                best = group.argmax(-1, keepdim=True)
                parts.append(one_hot_groups(best, (group.shape[-1],)))
        return torch.cat(parts, -1)


def sequence_values(
    networks: Networks, latent: Tensor, sequences: Tensor, *, discount: float, bonus: float
) -> Tensor:
    """Predicted discounted return of action sequences, with the critic's word at their end.

    Args:
        networks: Model and critic.
        latent: [N, L].
        sequences: [N, S, H, A] encoded actions.
        discount: Per step.
        bonus: Reward per unit of the members' disagreement about where a step leads from the mean
            of their latents. Along their own ways they would also be apart for what they disagreed
            about before.

    Returns:
        [N, S]: sum_t discount^t alive_t (reward_t + bonus disagreement_t) + discount^H alive_H V,
        alive_t being the chance that the episode still goes on; averaged over members.
    """
    model = networks.model
    rows, samples, horizon, _ = sequences.shape
    members = model.dynamics.members
    state = latent.repeat_interleave(samples, 0).expand(members, -1, -1)
    total = latent.new_zeros(members, rows * samples)
    alive = torch.ones_like(total)
    for t in range(horizon):
        action = sequences[:, :, t].flatten(0, 1)
        common = state.mean(0)
        state = model.next(state, action.expand(members, -1, -1))
        reward, logit = model.arrival(state)
        if bonus:
            reward = reward + bonus * disagreement(model.next(common, action))
        total = total + alive * reward
        alive = alive * torch.sigmoid(-logit) * discount
    total = total + alive * networks.value(state)
    return total.mean(0).view(rows, samples)


def make_search(config: MLPAgentConfig, networks: Networks, device: torch.device) -> Search:
    """What ``config.acting`` names, for networks on ``device``."""
    actor = networks.actor
    if config.acting == "actor-critic":
        return ActorOnly(actor)
    if config.acting == "mcts":
        return TreeSearch(config, networks.actions, device)
    iterations = config.iterations if config.acting == "cem" else 1
    return SequenceSearch(config, networks.actions, actor, iterations=iterations)


def _best(sequences: Tensor, value: Tensor, count: int) -> Tensor:
    """The ``count`` best sequences of each env, best first. [N, count, H, A]."""
    index = value.topk(count, dim=1).indices
    return sequences.gather(1, index[:, :, None, None].expand(-1, -1, *sequences.shape[2:]))
