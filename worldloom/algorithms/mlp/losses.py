"""The losses of one update: of the model on real windows, of the actor on imagined steps, and of
the critic on imagined and real ones.

Pure functions of networks, data and draws. Legend: B windows, T transitions of a window, K members,
H imagined steps, L latent, A encoded action; time first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.algorithms.mlp.model import Frozen, LatentModel, Networks, disagreement
from worldloom.nn.distributions import two_hot, two_hot_loss
from worldloom.nn.returns import lambda_return

__all__ = [
    "ActorCriticLoss",
    "Imagined",
    "LossScales",
    "ModelLoss",
    "WindowBatch",
    "actor_loss",
    "critic_loss",
    "imagine",
    "model_loss",
    "real_critic_loss",
]


class WindowBatch(NamedTuple):
    """Real windows, time first.

    Attributes:
        vector: [T+1, B, O] numbers of the observations.
        image: [T+1, B, C, Y, X] images, or None.
        action: [T, B, A] encoded; entry t leads from row t to row t+1.
        reward, terminated: [T, B] on arrival in row t+1.
        live: [T, B] 1 where row t+1 belongs to the episode of row t.
        goes_on: [T+1, B] 0 where the episode terminated in this row.
    """

    vector: Tensor
    image: Tensor | None
    action: Tensor
    reward: Tensor
    terminated: Tensor
    live: Tensor
    goes_on: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScales:
    """Weights of the model's losses, and what actor and critic look at."""

    reconstruction: float
    prediction: float
    dynamics: float
    reward: float
    done: float
    discount: float
    lam: float
    uncertainty_bonus: float
    straight_through: float


class ModelLoss(NamedTuple):
    """0-d total, latents [T+1, B, L] without gradient, and 0-d parts by name."""

    total: Tensor
    latent: Tensor
    metrics: dict[str, Tensor]


def model_loss(model: LatentModel, batch: WindowBatch, scales: LossScales) -> ModelLoss:
    """Reconstruction of every row, and what the unrolled dynamics say of every later row.

    From the first row of each window, and from the first row of an episode inside it, every member
    follows the actions that were taken; row t+1 is compared with the latent that the encoder gives
    it (no gradient into it) and, decoded, with the observation, reward and termination with what
    arrived there. Numbers count in units of their running deviation.

    Source: the guide's training step (reconstruction of a row and of the predicted next one,
    dynamics and reward by mean squared error, termination by binary cross-entropy), with the
    dynamics unrolled over the window instead of one step.
    """
    steps, rows = batch.reward.shape
    vector = batch.vector.flatten(0, 1)
    image = None if batch.image is None else batch.image.flatten(0, 1)
    latent = model.encode_parts(vector, image)
    seen = model.target(vector, image)
    error = model.recon_gap(model.decoder(latent), seen).mean()
    latent = latent.view(steps + 1, rows, -1)
    seen = seen.view(steps + 1, rows, -1)
    target = latent.detach()
    current = latent[0].expand(model.dynamics.members, -1, -1)
    predicted = []
    for t in range(steps):
        current = model.next(current, batch.action[t].expand(len(current), -1, -1))
        predicted.append(current)
        # the latent after the end of an episode is that of the next one's first row
        current = torch.where(batch.live[t, :, None] > 0, current, latent[t + 1])
    joint = torch.stack(predicted, 1)  # [K, T, B, L]
    reward, logit = model.arrival(joint.flatten(1, 2))
    shape = (len(joint), steps, rows)
    _, spread = model.reward_moments.mean_and_std()
    gaps = {
        "prediction": model.recon_gap(model.decoder(joint), seen[1:]),
        "dynamics": (joint - target[1:]).square().mean(-1),
        "reward": ((reward.view(shape) - batch.reward) / spread).square(),
        "done": F.binary_cross_entropy_with_logits(
            logit.view(shape), batch.terminated.expand(shape), reduction="none"
        ),
    }
    parts = {"reconstruction": error}
    parts |= {name: (gap * batch.live).mean() for name, gap in gaps.items()}
    total = torch.stack([getattr(scales, name) * value for name, value in parts.items()]).sum()
    metrics = {f"loss/{name}": value.detach() for name, value in parts.items()}
    metrics["disagreement"] = disagreement(joint.detach().flatten(1, 2)).mean()
    return ModelLoss(total, target, metrics)


class Imagined(NamedTuple):
    """What was imagined, R = K B starts; time first.

    Attributes:
        latent: [H+1, R, L].
        log_prob: [H, R] of the choices among classes; 0 where there are none.
        entropy: [H, R].
        raw_mean: [H, R, ...] means of continuous actions before their tanh.
        reward, cont: [H+1, R] on arrival; row 0 is unused.
    """

    latent: Tensor
    log_prob: Tensor
    entropy: Tensor
    raw_mean: Tensor
    reward: Tensor
    cont: Tensor


def imagine(
    networks: Networks,
    start: Tensor,
    uniform: Tensor,
    normal: Tensor,
    scales: LossScales,
) -> Imagined:
    """Follow the actor from ``start`` [K, B, L], the rows of member k in member k. The gradient
    flows through states and actions into the actor, for choices among classes the share
    ``straight_through`` of it, and not into the model.

    Args:
        networks: Model and actor.
        start: Latents without gradient.
        uniform, normal: [H, K B, ...] draws of the actions.
        scales: Share of the gradient; reward per unit of disagreement, see :func:`disagreement`.
    """
    bonus = scales.uncertainty_bonus
    model = networks.model
    frozen = model.freeze()
    members, rows, _ = start.shape
    latent = start
    latents = [start]
    heads = []
    actions = []
    doubts = []
    for t in range(len(uniform)):
        heads.append(networks.actor(latent.flatten(0, 1)))
        action = networks.actor.sample(heads[t], uniform[t], normal[t], scales.straight_through)
        actions.append(action)
        action = action.view(members, rows, -1)
        if bonus:
            latent, doubt = _next_and_doubt(model, latent, action, frozen)
            doubts.append(doubt)
        else:
            latent = model.next(latent, action, frozen)
        latents.append(latent)
    out = {name: torch.stack([head[name] for head in heads]) for name in heads[0]}
    log_prob = networks.actor.log_prob(out, torch.stack(actions).detach(), is_discrete_only=True)
    entropy = torch.stack(list(networks.actor.entropies(out).values())).sum(0)
    path = torch.stack(latents, 1)  # [K, H+1, B, L]
    shape = (members, len(latents), rows)
    reward, logit = model.arrival(path.flatten(1, 2), frozen)
    reward = reward.view(shape).transpose(0, 1).flatten(1)
    cont = torch.sigmoid(-logit).view(shape).transpose(0, 1).flatten(1)
    if bonus:
        reward = torch.cat([reward[:1], reward[1:] + bonus * torch.stack(doubts)])
    means = [value for name, value in out.items() if name.endswith("/mean")]
    raw_mean = torch.cat([*means, entropy.new_zeros(*entropy.shape, 0)], -1)
    latent = path.transpose(0, 1).flatten(1, 2)
    return Imagined(latent, log_prob, entropy, raw_mean, reward, cont)


def _next_and_doubt(
    model: LatentModel, latent: Tensor, action: Tensor, frozen: Frozen
) -> tuple[Tensor, Tensor]:
    """Each row's next latent in its own member [K, B, L], and how far the members are apart about
    it [K B].
    """
    members, rows, width = latent.shape
    everyone = model.next(latent.flatten(0, 1), action.flatten(0, 1), frozen)
    own = torch.stack([everyone[k, k * rows : (k + 1) * rows] for k in range(members)])
    return own.view(members, rows, width), disagreement(everyone)


class ActorCriticLoss(NamedTuple):
    """0-d loss of the actor, [H, R] returns and weights without gradient, and metrics."""

    total: Tensor
    returns: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


def actor_loss(
    networks: Networks,
    dreamt: Imagined,
    start_weight: Tensor,
    scales: LossScales,
    scale: Tensor,
    entropy_scale: float,
    mean_scale: float,
) -> ActorCriticLoss:
    """What the actor minimises: minus the lambda-return, each step with the chance that it is
    reached. The gradient of continuous actions goes through the model; that of choices among
    classes in part through the model, straight through the choice, in part by the score function.

    Args:
        networks: Their slow critic ends the returns.
        dreamt: From :func:`imagine`.
        start_weight: [R] 0 for starts in which the episode had ended.
        scales: Discount and lambda.
        scale: 0-d spread of returns, by which they are divided.
        entropy_scale: Factor of the entropy bonus.
        mean_scale: Factor of the squares of ``raw_mean``: a mean far out in its tanh feels no
            gradient any more.

    Source: DreamerV2, arXiv:2010.02193v4, Eq. 4 and 6 (return, and its two gradients;
    their rho is 1 - ``straight_through``); the scale of
    returns is DreamerV3's (arXiv:2301.04104v2, Eq. 11-12); the squares are those of SAC's code
    (github.com/haarnoja/sac, ``policy_mean_reg_weight``).
    """
    value = networks.value(dreamt.latent, is_slow=True)
    by_row = [x.transpose(0, 1) for x in (dreamt.reward, dreamt.cont, value)]
    reward, cont, ahead = by_row
    carry = torch.full_like(cont, scales.lam)
    returns = lambda_return(
        reward, cont, carry, ahead, ahead[:, -1], discount=scales.discount
    ).transpose(0, 1)
    alive = torch.cat([start_weight[None], scales.discount * dreamt.cont[1:-1]]).detach()
    weight = alive.cumprod(0)
    advantage = ((returns - value[:-1]) / scale).detach()
    gain = returns / scale if returns.requires_grad else returns.detach()
    score = (1 - scales.straight_through) * dreamt.log_prob * advantage
    objective = gain + score + entropy_scale * dreamt.entropy
    objective = objective - mean_scale * dreamt.raw_mean.square().sum(-1)
    metrics = {
        "value": value.detach().mean(),
        "return": returns.detach().mean(),
        "imagined_reward": dreamt.reward[1:].detach().mean(),
        "imagined_continue": dreamt.cont[1:].detach().mean(),
        "advantage": advantage.abs().mean(),
        "ent/all": dreamt.entropy.detach().mean(),
    }
    return ActorCriticLoss(-(weight * objective).mean(), returns.detach(), weight, metrics)


def critic_loss(networks: Networks, latent: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the critic at ``latent`` [..., L] against returns, weighted. 0-d."""
    logits = networks.critic(latent)["value"]
    return (weight * two_hot_loss(logits, [two_hot(returns, networks.bins)])).mean()


def real_critic_loss(
    networks: Networks, latent: Tensor, batch: WindowBatch, scales: LossScales
) -> Tensor:
    """The same on real steps: one-step targets, reward (with the bonus that imagined ones have) and
    slow critic at the next row. ``latent`` is [T+1, B, L]. 0-d.
    """
    with torch.no_grad():
        ahead = networks.value(latent[1:], is_slow=True)
        reward = batch.reward
        if scales.uncertainty_bonus:
            everyone = networks.model.next(latent[:-1].flatten(0, 1), batch.action.flatten(0, 1))
            doubt = disagreement(everyone).view(reward.shape)
            reward = reward + scales.uncertainty_bonus * doubt
        target = reward + scales.discount * (1 - batch.terminated) * ahead
    return critic_loss(networks, latent[:-1], target, batch.live)
