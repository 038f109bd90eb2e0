"""Monte Carlo tree search over imagined steps, one tree per env, all trees in step.

A node is a latent of every member; its children are the joint discrete actions. Each simulation
goes down by PUCT to an edge that was not tried, imagines where it leads, asks the critic what that
is worth and tells every edge on the way. Legend: N envs, M nodes, C joint actions, K members, L
latent.

Source: AlphaZero (arXiv:1712.01815v1) for PUCT with the actor as prior, MuZero
(arXiv:1911.08265v2, appendix B, Eq. 2-5) for its constants, the discounted backup and the
normalised values. Draws among visits and flat noise at the root explore.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldloom.algorithms.mlp.model import Networks, disagreement
from worldloom.algorithms.mlp.spec import MLPAgentConfig
from worldloom.nn.distributions import sample_classes
from worldloom.nn.layout import ActionLayout, one_hot_groups

__all__ = ["Tree", "TreeSearch", "puct_scores"]

PB_C_BASE = 19652.0
PB_C_INIT = 1.25
NOISE = 0.25
"""Share of noise in the priors of a root that explores."""


def puct_scores(prior: Tensor, visits: Tensor, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What selection maximises over the edges of one node per env, [N, C].

    q + prior sqrt(sum visits) / (1 + visits) (c1 + log((sum visits + c2 + 1) / c2)), with q the
    mean value of an edge between the lowest and highest of its tree, and 0 where it was not tried.

    Args:
        prior, visits, value: [N, C]; value is the mean over visits.
        low, high: [N, 1] range of values in the tree; no range leaves values as they are.

    Source: MuZero, arXiv:1911.08265v2, appendix B, Eq. 2 and 5 (c1 = 1.25, c2 = 19652).
    """
    total = visits.sum(-1, keepdim=True)
    spread = high - low
    scaled = torch.where(spread > 0, (value - low) / spread.clamp(min=1e-8), value)
    rate = PB_C_INIT + torch.log((total + PB_C_BASE + 1) / PB_C_BASE)
    # before the first visit the prior alone orders the edges
    explored = prior * total.clamp(min=1.0).sqrt() / (1 + visits) * rate
    return torch.where(visits > 0, scaled, 0.0) + explored


class Tree(NamedTuple):
    """Statistics of N trees of at most M nodes.

    Attributes:
        latent: [M, K, N, L].
        prior, visits, total, reward, alive: [N, M, C] of each edge; ``total`` is the sum of its
            values, ``reward`` on arrival, ``alive`` the discounted chance that the episode goes on.
        child: [N, M, C] index of the node that the edge leads to, or -1.
    """

    latent: Tensor
    prior: Tensor
    visits: Tensor
    total: Tensor
    reward: Tensor
    alive: Tensor
    child: Tensor


class TreeSearch:
    """See the module.

    Args:
        config: Number of simulations, depth, discount and bonus.
        layout: Actions, all of them choices.
        device: Where it searches.
    """

    def __init__(
        self, config: MLPAgentConfig, layout: ActionLayout, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.classes = tuple(count for key in layout.keys for count in key.classes)
        self.choices = math.prod(self.classes)
        self.num_uniform = 1 + self.choices
        self.num_normal = 0
        joint = list(itertools.product(*(range(count) for count in self.classes)))
        codes = one_hot_groups(torch.tensor(joint), self.classes)
        self.codes = codes.to(device)  # [C, A]

    def __call__(
        self, networks: Networks, latent: Tensor, uniform: Tensor, normal: Tensor, *, explore: bool
    ) -> Tensor:
        """See :class:`worldloom.algorithms.mlp.planner.Search`."""
        tree = self.grow(networks, latent, uniform[:, 1:] if explore else None)
        visits = tree.visits[:, 0]
        if explore:
            index = sample_classes(visits / visits.sum(-1, keepdim=True), uniform[:, 0])
        else:
            index = visits.argmax(-1)
        return self.codes[index]

    def grow(self, networks: Networks, latent: Tensor, noise: Tensor | None) -> Tree:
        """The trees after all simulations.

        Args:
            networks: Model, actor (prior) and critic.
            latent: [N, L] of the roots.
            noise: [N, C] uniform draws for the priors of the roots, or None not to explore.
        """
        bonus = self.config.search_bonus(explore=noise is not None)
        tree = self._plant(networks, latent, noise)
        rows = torch.arange(len(latent), device=latent.device)
        for size in range(1, self.config.simulations + 1):
            path, node, edge = self._descend(tree, rows, min(size, self.config.plan_horizon))
            self._expand(networks, tree, rows, node, edge, size, bonus)
            self._back_up(networks, tree, rows, path, size)
        return tree

    def _plant(self, networks: Networks, latent: Tensor, noise: Tensor | None) -> Tree:
        rows, width = latent.shape
        nodes = self.config.simulations + 1
        members = networks.model.dynamics.members
        shape = (rows, nodes, self.choices)
        tree = Tree(
            latent=latent.new_zeros(nodes, members, rows, width),
            prior=latent.new_zeros(shape),
            visits=latent.new_zeros(shape),
            total=latent.new_zeros(shape),
            reward=latent.new_zeros(shape),
            alive=latent.new_zeros(shape),
            child=torch.full(shape, -1, dtype=torch.long, device=latent.device),
        )
        tree.latent[0] = latent
        prior = self._prior(networks, latent)
        if noise is not None:
            # exponentials over their sum: one draw of a flat Dirichlet
            raw = -torch.log1p(-noise.clamp(max=1 - 1e-6)) + 1e-6
            prior = (1 - NOISE) * prior + NOISE * raw / raw.sum(-1, keepdim=True)
        tree.prior[:, 0] = prior
        return tree

    def _prior(self, networks: Networks, latent: Tensor) -> Tensor:
        """The actor's probability of each joint action. [N, L] -> [N, C]."""
        out = networks.actor(latent)
        rows = latent[:, None].expand(-1, self.choices, -1)
        spread = {n: v[:, None].expand(-1, self.choices, -1) for n, v in out.items()}
        codes = self.codes.expand(len(rows), -1, -1)
        return networks.actor.log_prob(spread, codes).exp()

    def _descend(
        self, tree: Tree, rows: Tensor, depth: int
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, Tensor]:
        """Follow the best edges until one was not tried, or ``depth`` edges.

        Returns:
            Edges of the way, each (node [N], edge [N], is it on the way [N]), and the last one.
        """
        tried = tree.visits > 0
        mean = torch.where(tried, tree.total / tree.visits.clamp(min=1.0), 0.0)
        low = torch.where(tried, mean, math.inf).flatten(1).amin(1, keepdim=True)
        high = torch.where(tried, mean, -math.inf).flatten(1).amax(1, keepdim=True)
        low, high = (torch.where(x.isfinite(), x, 0.0) for x in (low, high))
        node = torch.zeros_like(rows)
        edge = node
        is_on = torch.ones_like(rows, dtype=torch.bool)
        path = []
        for _ in range(depth):
            scores = puct_scores(
                tree.prior[rows, node], tree.visits[rows, node], mean[rows, node], low, high
            )
            edge = torch.where(is_on, scores.argmax(-1), edge)
            path.append((node, edge, is_on))
            child = tree.child[rows, node, edge]
            is_on = is_on & (child >= 0)
            node = torch.where(is_on, child, node)
        # a way that was cut by depth ends in an edge that leads to a node: imagine it once more
        return path, path[-1][0], path[-1][1]

    def _expand(
        self,
        networks: Networks,
        tree: Tree,
        rows: Tensor,
        node: Tensor,
        edge: Tensor,
        size: int,
        bonus: float,
    ) -> None:
        """Imagine the edge, and keep where it leads as node ``size``; ``bonus`` is per unit of
        disagreement about that from the members' mean latent.
        """
        model = networks.model
        state = tree.latent[node, :, rows].transpose(0, 1)  # [K, N, L]
        action = self.codes[edge]
        latent = model.next(state, action.expand(len(state), -1, -1))
        reward, logit = model.arrival(latent)
        reward = reward.mean(0)
        if bonus:
            reward = reward + bonus * disagreement(model.next(state.mean(0), action))
        tree.latent[size] = latent
        tree.reward[rows, node, edge] = reward
        tree.alive[rows, node, edge] = torch.sigmoid(-logit).mean(0) * (self.config.discount or 1.0)
        is_new = tree.child[rows, node, edge] < 0
        held = tree.child[rows, node, edge]
        tree.child[rows, node, edge] = torch.where(is_new, torch.full_like(held, size), held)
        tree.prior[:, size] = self._prior(networks, latent.mean(0))

    def _back_up(
        self,
        networks: Networks,
        tree: Tree,
        rows: Tensor,
        path: list[tuple[Tensor, Tensor, Tensor]],
        size: int,
    ) -> None:
        """Tell every edge of the way what it was worth: reward + alive * what came after."""
        value = networks.value(tree.latent[size]).mean(0)
        for node, edge, is_on in reversed(path):
            reward, alive = tree.reward[rows, node, edge], tree.alive[rows, node, edge]
            value = torch.where(is_on, reward + alive * value, value)
            on = is_on.to(value.dtype)
            tree.total[rows, node, edge] += on * value
            tree.visits[rows, node, edge] += on
