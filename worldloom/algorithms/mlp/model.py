"""The agent's latent model: one encoder and decoder, and an ensemble of K dynamics, each with its
own reward and termination, computed side by side in one batched product per layer.

A state of all members is ``[K, R, L]``: row r of member k is where member k believes to be. Legend:
K members, R rows, L latent, A encoded action, O numbers of an observation, P reconstructed pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.algorithms.mlp.networks import plain_mlp
from worldloom.algorithms.mlp.spec import OBS_LEAST, REWARD_LEAST, MLPAgentConfig
from worldloom.core.specs import EnvSpec
from worldloom.nn.actor import Actor
from worldloom.nn.conv import CHANNELS, ConvTower
from worldloom.nn.dense import Head
from worldloom.nn.distributions import symexp_bins, two_hot_mean
from worldloom.nn.ensemble import PlainEnsemble, StackedLayer
from worldloom.nn.layout import ActionLayout, ObsLayout, VectorKey, missing, one_hot_groups
from worldloom.nn.running_moments import RunningMoments

__all__ = ["Frozen", "LatentModel", "Networks", "disagreement", "legal"]

BIN_LIMIT = 14.0
"""Outermost bins of the critic, in symlog space: returns up to 1.2e6. At DreamerV3's 20, before
the tails are learned, rounding of their logits moves values by a tenth, which larger steps than
DreamerV3's magnify.
"""
SHRINK = 4
"""Images are reconstructed at a quarter of the height and width."""


def legal(action: Tensor) -> Tensor:
    """Encoded actions with numbers beyond [-1, 1] set to the end that they passed; the gradient
    still reaches them. Codes of classes stay as they are.
    """
    return action / action.detach().abs().clamp(min=1.0)


def disagreement(latent: Tensor) -> Tensor:
    """How far members are apart: the root of their variance, averaged over the latent. [K, R, L]
    -> [R].
    """
    return latent.var(0, correction=0).mean(-1).add(1e-12).sqrt()


class Frozen(NamedTuple):
    """Weights of all members without gradient; see :meth:`LatentModel.freeze`."""

    dynamics: list[StackedLayer]
    reward: list[StackedLayer]
    done: list[StackedLayer]


class LatentModel(nn.Module):
    """Encoder, latent dynamics, reward, termination and decoder of the guide.

    Args:
        config: Sizes.
        obs: What is observed.
        action_width: A.
    """

    def __init__(self, config: MLPAgentConfig, obs: ObsLayout, action_width: int) -> None:
        super().__init__()
        self.obs = obs
        latent = config.latent_dim
        hidden = config.hidden_dim
        height, width = obs.canvas
        self.small = (height // SHRINK, width // SHRINK)
        tokens = (height // 16) * (width // 16) * config.conv_depth * CHANNELS[-1]
        self.tower = ConvTower(obs.channels, config.conv_depth) if obs.images else None
        self.pixels = obs.channels * self.small[0] * self.small[1]
        self.encoder = plain_mlp(obs.vector_width + tokens, hidden, latent, 2)
        self.decoder = plain_mlp(latent, hidden, obs.vector_width + self.pixels, 2)
        count = config.ensemble_size
        self.dynamics = PlainEnsemble(count, latent + action_width, (hidden, hidden), latent)
        self.reward = PlainEnsemble(count, latent, (hidden,), 1)
        self.done = PlainEnsemble(count, latent, (hidden,), 1)
        self.obs_moments = RunningMoments(obs.vector_width, least=OBS_LEAST)
        self.reward_moments = RunningMoments(1, least=REWARD_LEAST)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Latents [R, L] of raw observations per key [R, ...]."""
        return self.encode_parts(*self.parts(obs))

    def encode_parts(self, vector: Tensor, image: Tensor | None) -> Tensor:
        """Latents [R, L] of what :meth:`parts` gives."""
        tokens = self.obs_moments.scaled(vector)
        if self.tower is not None and image is not None:
            tokens = torch.cat([tokens, self.tower(image)], -1)
        encoded: Tensor = self.encoder(tokens)
        return encoded

    def parts(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """All vectors side by side [R, O], as they are, and all images on one canvas or None."""
        image = self.obs.image(obs) if self.obs.images else None
        if not self.obs.vectors:
            assert image is not None  # a layout is never empty
            return image.new_zeros(len(image), 0), image
        return torch.cat([_numbers(key, obs[key.name]) for key in self.obs.vectors], -1), image

    def target(self, vector: Tensor, image: Tensor | None) -> Tensor:
        """What the decoder should give, [R, O + P]: numbers in units of their deviation, images
        averaged down.
        """
        scaled = self.obs_moments.scaled(vector)
        if image is None:
            return scaled
        return torch.cat([scaled, F.avg_pool2d(image, SHRINK).flatten(1)], -1)

    def recon_gap(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the numbers plus that of the pixels, of which there are thousands.
        [..., O + P] -> [...].
        """
        parts = torch.split((decoded - target).square(), [self.obs.vector_width, self.pixels], -1)
        return torch.stack([part.mean(-1) for part in parts if part.shape[-1]]).sum(0)

    def next(self, latent: Tensor, action: Tensor, frozen: Frozen | None = None) -> Tensor:
        """Each member's next latent. [K, R, L] (or [R, L] for all), actions of the same leading
        axes -> [K, R, L].
        """
        joint = torch.cat([latent, legal(action)], -1)
        return self.dynamics(joint, frozen and frozen.dynamics)  # type: ignore[no-any-return]

    def arrival(self, latent: Tensor, frozen: Frozen | None = None) -> tuple[Tensor, Tensor]:
        """Reward on arrival and the logit of having ended. [K, R, L] -> [K, R] each."""
        reward = self.reward_moments.restored(self.reward(latent, frozen and frozen.reward))
        return reward.squeeze(-1), self.done(latent, frozen and frozen.done).squeeze(-1)

    def freeze(self) -> Frozen:
        """The members' weights without gradient, for :meth:`next` and :meth:`arrival`."""
        return Frozen(self.dynamics.frozen, self.reward.frozen, self.done.frozen)


class Networks(nn.Module):
    """The model, and what learns from it: actor, critic, slow critic.

    Args:
        config: Sizes.
        env: Its spaces.
    """

    bins: Tensor

    def __init__(self, config: MLPAgentConfig, env: EnvSpec) -> None:
        super().__init__()
        self.actions = ActionLayout.from_specs(env.action)
        self.model = LatentModel(config, ObsLayout.from_specs(env.obs), self.actions.width)
        latent = config.latent_dim
        units = config.policy_dim
        layers = config.policy_layers
        self.actor = Actor(self.actions, latent, units, layers)
        heads = [Head(latent, units, layers, {"value": config.bins}, outscale=0) for _ in range(2)]
        self.critic, self.slow = heads
        self.slow.requires_grad_(False)
        self.slow.load_state_dict(self.critic.state_dict())
        self.register_buffer("bins", symexp_bins(config.bins, limit=BIN_LIMIT), persistent=False)

    def value(self, latent: Tensor, *, is_slow: bool = False) -> Tensor:
        """Expected return. [..., L] -> [...]."""
        head = self.slow if is_slow else self.critic
        return two_hot_mean(head(latent)["value"], self.bins)

    def acting(self, *, is_planner: bool) -> dict[str, Tensor]:
        """What a decision reads, by name: the encoder and the actor, for a search also the
        ensemble and the critic.
        """
        parts = ["model.obs_moments.", "model.encoder.", "model.tower.", "actor."]
        if is_planner:
            parts += ["model.dynamics.", "model.reward", "model.done.", "critic."]
        wanted = tuple(parts)
        return {name: t for name, t in self.state_dict().items() if name.startswith(wanted)}

    def groups(self) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
        """What each optimizer trains: name -> parameters by name."""
        for part in ("model", "actor", "critic"):
            yield part, dict(getattr(self, part).named_parameters())


def _numbers(key: VectorKey, value: Tensor) -> Tensor:
    """Raw [R, ...] to [R, width]: numbers as they are, classes as one-hot codes, zeros where the
    key is missing.
    """
    flat = value.reshape(value.shape[0], -1)
    codes = one_hot_groups(flat, key.classes) if key.classes else flat.float()
    return codes.masked_fill(missing(flat).unsqueeze(-1), 0.0)
