"""The five networks of one plain latent world model. Legend: N rows, O flat observation, L latent,
A action.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.algorithms.mlp.config import MLPConfig

__all__ = ["Member", "MemberLoss", "plain_mlp"]

MIN_LOG_VARIANCE = -10.0
MAX_LOG_VARIANCE = 4.0


def plain_mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """``layers`` hidden layers with ReLU and a linear output."""
    sizes = [inputs] + [hidden] * layers
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        parts += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs))


class MemberLoss(NamedTuple):
    """0-d losses of one member."""

    reconstruction: Tensor
    dynamics: Tensor
    reward: Tensor
    cont: Tensor


class Member(nn.Module):
    """Encoder, latent dynamics, reward, termination and decoder.

    Args:
        config: Settings; ``ensemble_size`` does not matter here.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        latent = config.latent_dim
        self.horizon = config.horizon
        self.encoder = plain_mlp(config.obs_size, hidden, latent, 2)
        self.dynamics = plain_mlp(
            latent + config.action_dim, hidden, latent * (2 if config.predict_variance else 1), 2
        )
        self.reward = plain_mlp(latent, hidden, 1, 1)
        self.done = plain_mlp(latent, hidden, 1, 1)
        self.decoder = plain_mlp(latent, hidden, config.obs_size, 2)
        self.has_variance = config.predict_variance

    def next(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log variance (or None) of the next latent. [N, L]."""
        out = self.dynamics(torch.cat([latent, action], -1))
        if not self.has_variance:
            return out, None
        mean, raw = out.chunk(2, -1)
        return mean, MIN_LOG_VARIANCE + (MAX_LOG_VARIANCE - MIN_LOG_VARIANCE) * torch.sigmoid(raw)

    def losses(
        self, obs: Tensor, action: Tensor, reward: Tensor, done: Tensor, live: Tensor, blind: Tensor
    ) -> MemberLoss:
        """Losses of sequences.

        Args:
            obs: [B, R, O].
            action: [B, T, A]; entry t leads from row t to row t + 1.
            reward, done: [B, T] of those actions.
            live: [B, T] 1 where row t + 1 is what action t led to; the dynamics learn from these
                only.
            blind: [B, R] 0 for rows without an observation.
        """
        latent = self.encoder(obs)
        error = (self.decoder(latent) - obs).square().mean(-1)
        reconstruction = (error * blind).sum() / blind.sum().clamp(min=1.0)
        steps = action.shape[1]
        predicted, _ = self.next(latent[:, :steps], action)
        reward_loss = (self.reward(predicted).squeeze(-1) - reward).square().mean()
        cont = F.binary_cross_entropy_with_logits(self.done(predicted).squeeze(-1), done)
        return MemberLoss(
            reconstruction, self._dynamics_loss(latent, action, live), reward_loss, cont
        )

    def _dynamics_loss(self, latent: Tensor, action: Tensor, live: Tensor) -> Tensor:
        """Distance of unrolled latents to encoded ones, averaged over ``horizon`` steps."""
        steps = min(action.shape[1], latent.shape[1] - 1)
        if not steps:
            return latent.sum() * 0
        target = latent.detach()
        alive = live[:, :steps]
        current = latent[:, :steps]
        weight = alive
        total = latent.new_zeros(())
        depth = min(self.horizon, steps)
        for k in range(depth):
            mean, log_var = self.next(current, action[:, k : k + current.shape[1]])
            gap = (mean - target[:, k + 1 : k + 1 + mean.shape[1]]).square()
            if log_var is not None:
                gap = 0.5 * (gap * torch.exp(-log_var) + log_var)
            total = total + (gap.mean(-1) * weight).sum() / weight.sum().clamp(min=1.0)
            current = mean[:, :-1]
            weight = weight[:, :-1] * alive[:, k + 1 :]
        return total / depth
