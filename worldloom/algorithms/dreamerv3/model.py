"""DreamerV3's world model: encoder, recurrent state-space model, decoder, reward and continuation
heads, and their losses.

:class:`LatentModel` is all of it but the decoder, and lets an heir say what its representation
learns from. The losses are pure functions of batch and draws. Source: DreamerV3,
arXiv:2301.04104v2, Eq. 1-5, with the constants and the departures of the official code. Legend: B
batch, T time, A encoded action width, E token width, S categoricals, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.config import MLP_LAYERS, DreamerSizes, LatentSizes
from worldloom.algorithms.dreamerv3.decoder import Decoder
from worldloom.algorithms.dreamerv3.encoder import Encoder
from worldloom.algorithms.dreamerv3.rssm import RSSM, Posterior, State
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.core.specs import EnvSpec
from worldloom.nn.dense import Head
from worldloom.nn.distributions import (
    binary_loss,
    categorical_entropy,
    categorical_kl,
    symexp_bins,
    two_hot,
    two_hot_loss,
    two_hot_mean,
    unimix_log_probs,
)
from worldloom.nn.layout import ActionLayout, ObsLayout

__all__ = ["LatentModel", "ModelBatch", "ModelOutput", "WorldModel", "compute_dtype"]

REWARD_LAYERS = CONTINUE_LAYERS = 1


class ModelBatch(NamedTuple):
    """What the world model trains on; all ``[B, T, ...]`` except the start state.

    Attributes:
        obs: Raw observations per key.
        action: [B, T, A] encoded *previous* action of each step.
        reward, is_first, is_last, terminated: [B, T].
        start: State before the first step.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    terminated: Tensor
    start: State


class ModelOutput(NamedTuple):
    """Result of :meth:`LatentModel.losses`.

    Attributes:
        losses: Name -> unscaled loss [B, T]: ``dyn``, ``rep``, those of the representation,
            ``rew``, ``con``.
        posterior: The filtered sequence.
        prior_logits: [B, T, S, C].
        metrics: Scalars.
    """

    losses: dict[str, Tensor]
    posterior: Posterior
    prior_logits: Tensor
    metrics: dict[str, Tensor]


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype that matrix products compute in here: autocast's where it is on, else float32."""
    kind = torch.device(device).type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class LatentModel(nn.Module, ABC):
    """All that predicts latents, rewards and ends; behaviour (actor, critic) lives in the agent.

    Args:
        env: Observation and action keys.
        sizes: Network sizes.
        mlp_layers: Layers of the encoder's vector branch.
    """

    bins: Tensor

    def __init__(self, env: EnvSpec, sizes: LatentSizes, *, mlp_layers: int = MLP_LAYERS) -> None:
        super().__init__()
        self.sizes = sizes
        self.obs_layout = ObsLayout.from_specs(env.obs)
        self.action_layout = ActionLayout.from_specs(env.action)
        self.enc = Encoder(self.obs_layout, sizes, mlp_layers)
        self.dyn = RSSM(self.enc.width, self.action_layout.width, sizes)
        self.add_representation(mlp_layers)
        self.rew = Head(
            sizes.feature, sizes.units, REWARD_LAYERS, {"logits": sizes.bins}, outscale=0.0
        )
        self.con = Head(sizes.feature, sizes.units, CONTINUE_LAYERS, {"logit": 1}, outscale=1.0)
        self.register_buffer("bins", symexp_bins(sizes.bins), persistent=False)

    @abstractmethod
    def add_representation(self, mlp_layers: int) -> None:
        """Make the networks that only :meth:`representation_losses` reads. Called between the
        dynamics and the heads: in this order equal seeds draw equal weights.
        """

    @abstractmethod
    def representation_losses(
        self, batch: ModelBatch, tokens: Tensor, posterior: Posterior
    ) -> dict[str, Tensor]:
        """What the latents learn to hold of the observations.

        Args:
            batch: Real experience.
            tokens: [B, T, E] its encoded observations.
            posterior: What was filtered from them.

        Returns:
            Name -> unscaled loss, [B, T] or 0-d.
        """

    def tokens(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Encode ``[B, T, ...]`` observations. [B, T, E]."""
        keys = self.obs_layout.names
        lead = obs[keys[0]].shape[:2]
        tokens: Tensor = self.enc({name: obs[name].flatten(0, 1) for name in keys})
        return tokens.reshape(*lead, -1)

    def weights(self) -> CellWeights:
        """The recurrent core's weights in the current compute dtype."""
        return self.dyn.cell_weights(compute_dtype(self.bins.device))

    def observe(
        self, w: CellWeights, batch: ModelBatch, draws: Tensor, tokens: Tensor | None = None
    ) -> Posterior:
        """Filter a batch.

        Args:
            w: From :meth:`weights`.
            batch: Real experience.
            draws: [B, T, S] as for :meth:`RSSM.sample`.
            tokens: [B, T, E], where the caller has encoded the observations.
        """
        if tokens is None:
            tokens = self.tokens(batch.obs)
        return self.dyn.observe(w, batch.start, batch.action, tokens, batch.is_first, draws)

    def reward(self, feature: Tensor) -> Tensor:
        """Expected reward on arrival at a state. [..., F] -> [...]."""
        return two_hot_mean(self.rew(feature)["logits"], self.bins)

    def cont(self, feature: Tensor) -> Tensor:
        """Probability that the episode goes on (times 1 - 1/horizon when trained so). [..., F] ->
        [...].
        """
        return torch.sigmoid(self.con(feature)["logit"].squeeze(-1))

    def reward_from_first(self, first: Tensor) -> Tensor:
        """As :meth:`reward`, given the output of the head's first linear layer."""
        return two_hot_mean(self.rew.from_first(first)["logits"], self.bins)

    def cont_from_first(self, first: Tensor) -> Tensor:
        """As :meth:`cont`, given the output of the head's first linear layer."""
        return torch.sigmoid(self.con.from_first(first)["logit"].squeeze(-1))

    def losses(
        self,
        batch: ModelBatch,
        draws: Tensor,
        *,
        free_nats: float,
        cont_scale: float,
        weights: CellWeights | None = None,
    ) -> ModelOutput:
        """World-model losses of a batch.

        Args:
            batch: Real experience.
            draws: [B, T, S] as for :meth:`RSSM.sample`.
            free_nats: KL below this is not penalised; applied after the sum over categoricals.
            cont_scale: Factor on the continuation target (1 - 1/horizon when the discount is
                learnt, else 1).
            weights: From :meth:`weights`, where the caller has prepared them.
        """
        w = self.weights() if weights is None else weights
        tokens = self.tokens(batch.obs)
        post = self.observe(w, batch, draws, tokens)
        prior = self.dyn.prior_logits(post.deter)
        losses, metrics = self._kl_losses(post.logits, prior, free_nats)
        losses |= self.representation_losses(batch, tokens, post)
        feature = post.feature
        losses["rew"] = two_hot_loss(
            self.rew(feature)["logits"], [two_hot(batch.reward, self.bins)]
        )
        target = (~batch.terminated).float() * cont_scale
        losses["con"] = binary_loss(self.con(feature)["logit"].squeeze(-1), target)
        return ModelOutput(losses, post, prior, metrics)

    def _kl_losses(
        self, post: Tensor, prior: Tensor, free: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        log_post = unimix_log_probs(post, self.sizes.unimix)
        log_prior = unimix_log_probs(prior, self.sizes.unimix)
        dyn = categorical_kl(log_post.detach(), log_prior).sum(-1)
        rep = categorical_kl(log_post, log_prior.detach()).sum(-1)
        with torch.no_grad():
            metrics = {
                "dyn_ent": categorical_entropy(log_prior).sum(-1).mean(),
                "rep_ent": categorical_entropy(log_post).sum(-1).mean(),
            }
        return {"dyn": dyn.clamp(min=free), "rep": rep.clamp(min=free)}, metrics


class WorldModel(LatentModel):
    """Learns its representation by decoding the observations again.

    Args:
        env: Observation and action keys.
        sizes: Network sizes.
        mlp_layers: Layers of the vector branches of encoder and decoder.
    """

    sizes: DreamerSizes

    def add_representation(self, mlp_layers: int) -> None:
        """See :meth:`LatentModel.add_representation`: the decoder."""
        self.dec = Decoder(self.obs_layout, self.sizes, mlp_layers)

    def representation_losses(
        self, batch: ModelBatch, tokens: Tensor, posterior: Posterior
    ) -> dict[str, Tensor]:
        """The reconstruction loss of each observation key, as ``obs/<key>`` [B, T]."""
        lead = batch.reward.shape
        obs = {name: value.flatten(0, 1) for name, value in batch.obs.items()}
        deter = posterior.deter.flatten(0, 1)
        decoded = self.dec.losses(deter, posterior.stoch.flatten(0, 1), obs)
        return {f"obs/{name}": value.reshape(lead) for name, value in decoded.items()}
