"""World model, actor, critic and slow critic as one module, imagination, and the single loss that
trains them all.

Everything here is a pure function of parameters, batch and draws; the optimizer lives in ``agent``.
Legend: B batch, T time, N = B T start states, H imagined steps, F feature width, A encoded action
width, S categoricals.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.model import LatentModel, ModelBatch, WorldModel
from worldloom.algorithms.dreamerv3.returns import (
    ImagineLosses,
    NormalizerState,
    ReturnNormalizer,
    imagine_losses,
    replay_losses,
)
from worldloom.algorithms.dreamerv3.rssm import Posterior, State
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.algorithms.dreamerv3.spec import DreamerAgentConfig
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.core.specs import EnvSpec
from worldloom.nn.actor import Actor
from worldloom.nn.dense import Dense, Head, Linear, linear_rows
from worldloom.nn.layout import ActionLayout

__all__ = ["TRAINED", "Draws", "Imagined", "LossOutput", "Networks"]

TRAINED = ("model", "actor", "critic")
"""Modules that the optimizer trains; only the slow critic is missing."""


class Draws(NamedTuple):
    """All randomness of one update.

    Attributes:
        posterior: [B, T, S] uniform draws, or int64 classes (teacher forcing).
        prior: [H, N, S] likewise.
        uniform, normal: [H+1, N, k] draws of the actions; ignored when ``action`` is given.
        action: [H+1, N, A] encoded actions to take instead of sampling.
    """

    posterior: Tensor
    prior: Tensor
    uniform: Tensor
    normal: Tensor
    action: Tensor | None = None

    def rows(self, start: int, stop: int) -> Draws:
        """The draws of windows ``start..stop`` of the batch."""
        steps = self.posterior.shape[1]
        first = start * steps
        last = stop * steps
        action = None if self.action is None else self.action[:, first:last]
        return Draws(
            self.posterior[start:stop],
            self.prior[:, first:last],
            self.uniform[:, first:last],
            self.normal[:, first:last],
            action,
        )


class Imagined(NamedTuple):
    """A rollout without gradients: feature [H+1, N, F] and encoded action [H+1, N, A]; index 0 is
    the start state.
    """

    feature: Tensor
    action: Tensor


class LossOutput(NamedTuple):
    """Total loss (0-d), every unscaled loss per step (one of the whole batch: 0-d), the posterior,
    the new return normaliser, scalar metrics.
    """

    total: Tensor
    losses: dict[str, Tensor]
    posterior: Posterior
    normalizer: NormalizerState
    metrics: dict[str, Tensor]


class Networks(nn.Module):
    """All networks of the agent.

    Actor, encoder and dynamics are built first and in this order, as a policy that only acts builds
    them too: equal seeds then give equal weights.
    """

    kind_of_model: ClassVar[type[LatentModel]] = WorldModel
    """An heir may have another."""

    def __init__(self, config: DreamerAgentConfig, env: EnvSpec) -> None:
        super().__init__()
        self.config = config
        self.ranks: ProcessGroup = SINGLE_PROCESS
        sizes = config
        self.actor = Actor(
            ActionLayout.from_specs(env.action), sizes.feature, sizes.units, config.actor_layers
        )
        self.model = self.kind_of_model(env, sizes)
        heads = [
            Head(
                sizes.feature,
                sizes.units,
                config.critic_layers,
                {"logits": sizes.bins},
                outscale=0.0,
            )
            for _ in range(2)
        ]
        self.critic, self.slow_critic = heads
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.slow_critic.requires_grad_(False)
        self.normalizer = ReturnNormalizer(
            rate=config.return_rate,
            limit=config.return_limit,
            low=config.return_low,
            high=config.return_high,
        )

    def trained(self) -> dict[str, Tensor]:
        """Parameters that the optimizer updates, by name."""
        return {name: p for name, p in self.named_parameters() if name.startswith(TRAINED)}

    @torch.no_grad()
    def imagine(self, w: CellWeights, start: State, draws: Draws) -> Imagined:
        """Follow the actor through the prior for H steps from N states."""
        horizon, rows = draws.prior.shape[:2]
        dtype = w.w_hid.dtype
        split = start.deter.shape[-1]
        w = CellWeights(*(tensor.detach() for tensor in w))
        feature = torch.empty(
            horizon + 1, rows, split + start.stoch.shape[-1], dtype=dtype, device=start.deter.device
        )
        feature[0, :, :split] = start.deter
        feature[0, :, split:] = start.stoch
        action = torch.empty(
            horizon + 1, rows, self.model.action_layout.width, device=start.deter.device
        )
        state = start
        for t in range(horizon + 1):
            if draws.action is not None:
                action[t] = draws.action[t]
            else:
                action[t] = self.actor.sample(
                    self.actor(feature[t]), draws.uniform[t], draws.normal[t]
                )
            if t < horizon:
                state, _ = self.model.dyn.imagine_step(w, state, action[t], draws.prior[t])
                feature[t + 1, :, :split], feature[t + 1, :, split:] = state
        return Imagined(feature, action)

    def loss(self, batch: ModelBatch, draws: Draws, normalizer: NormalizerState) -> LossOutput:
        """The single scalar that one backward pass differentiates, with everything that comes out
        on the way.
        """
        c = self.config
        w = self.model.weights()
        out = self.model.losses(
            batch,
            draws.posterior,
            free_nats=c.free_nats,
            cont_scale=self._cont_scale(),
            weights=w,
        )
        start = State(
            out.posterior.deter.detach().flatten(0, 1), out.posterior.stoch.detach().flatten(0, 1)
        )
        imagined = self.imagine(w, start, draws)
        behavior, entropies = self.behavior(imagined, normalizer)
        lead = batch.reward.shape
        repval, _ = self.replay_loss(
            batch, out.posterior.feature, behavior.returns[:, 0].reshape(lead)
        )
        losses = {
            **out.losses,
            "policy": behavior.policy.mean(1).reshape(lead),
            "value": behavior.value.mean(1).reshape(lead),
            "repval": repval,
        }
        total = torch.stack(
            [c.loss_scale(name) * value.mean() for name, value in losses.items()]
        ).sum()
        with torch.no_grad():
            metrics = out.metrics | behavior.metrics | self._entropy_metrics(entropies)
            metrics |= {f"loss/{name}": value.mean() for name, value in losses.items()}
        return LossOutput(total, losses, out.posterior, behavior.normalizer, metrics)

    def _entropy_metrics(self, entropies: dict[str, Tensor]) -> dict[str, Tensor]:
        means = {name: entropy[:, :-1].mean() for name, entropy in entropies.items()}
        fractions = {
            f"rand/{name}": self.actor.randomness(name, mean) for name, mean in means.items()
        }
        return fractions | {f"ent/{name}": mean for name, mean in means.items()}

    def _cont_scale(self) -> float:
        return 1.0 - 1.0 / self.config.horizon if self.config.learn_discount else 1.0

    def behavior(
        self, imagined: Imagined, state: NormalizerState
    ) -> tuple[ImagineLosses, dict[str, Tensor]]:
        """Actor and critic losses on a rollout, and the entropy per action key [N, H+1]."""
        c = self.config
        model = self.model
        feature = imagined.feature
        with torch.no_grad():
            first = linear_rows(
                feature, [first_linear(h) for h in (model.rew, model.con, self.slow_critic)]
            )
            reward = model.reward_from_first(first[0]).t()
            cont = model.cont_from_first(first[1]).t()
            slow = self.slow_critic.from_first(first[2])["logits"].transpose(0, 1)
        first = linear_rows(feature, [first_linear(h) for h in (self.actor.head, self.critic)])
        policy = self.actor.head.from_first(first[0])
        entropies = {name: entropy.t() for name, entropy in self.actor.entropies(policy).items()}
        losses = imagine_losses(
            log_prob=self.actor.log_prob(policy, imagined.action).t(),
            entropy=torch.stack(list(entropies.values())).sum(0),
            reward=reward,
            cont=cont,
            value_logits=self.critic.from_first(first[1])["logits"].transpose(0, 1),
            slow_logits=slow,
            bins=model.bins,
            normalizer=self.normalizer,
            state=state,
            discount=1.0 if c.learn_discount else 1.0 - 1.0 / c.horizon,
            lam=c.lam,
            entropy_scale=c.entropy_scale,
            slow_scale=c.slow_scale,
            slow_target=c.slow_target,
            gather=self.ranks.gather,
        )
        return losses, entropies

    def replay_loss(
        self, batch: ModelBatch, feature: Tensor, boot: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Critic loss and returns on the replayed steps [B, T-1], bootstrapped with imagined
        returns ``boot`` [B, T].
        """
        c = self.config
        with torch.no_grad():
            slow = self.slow_critic(feature)["logits"]
        return replay_losses(
            reward=batch.reward,
            is_last=batch.is_last,
            terminated=batch.terminated,
            boot=boot,
            value_logits=self.critic(feature)["logits"],
            slow_logits=slow,
            bins=self.model.bins,
            discount=1.0 - 1.0 / c.horizon,
            lam=c.lam,
            slow_scale=c.slow_scale,
        )

    @torch.no_grad()
    def update_slow_critic(self, rate: Tensor) -> None:
        """Slow <- slow + rate (critic - slow), rate a 0-d tensor (0 leaves it exactly as it is)."""
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, rate)


def first_linear(head: Head) -> Linear:
    """The first linear layer of a head's MLP."""
    dense = head.mlp.layers[0]
    assert isinstance(dense, Dense)
    return dense.linear
