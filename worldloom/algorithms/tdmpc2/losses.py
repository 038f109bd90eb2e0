"""The two losses of TD-MPC2 as pure functions of networks, batch and draws.

Source: TD-MPC2, arXiv:2310.16828v2, Eqs. 3-6. Time comes first inside an update, because the model
is unrolled over it. Shape legend: H horizon, B batch, L latent, A action, Q critics, K bins, D task
embedding, M hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.algorithms.tdmpc2.draws import UpdateDraws
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.running_scale import updated_scale
from worldloom.core.process_group import SINGLE_PROCESS
from worldloom.nn.ensemble import EnsembleMLP, StackedLayer, ensemble_after_first, ensemble_forward

__all__ = [
    "LossSettings",
    "ModelLoss",
    "PolicyLoss",
    "UpdateBatch",
    "cloning_loss",
    "model_loss",
    "policy_loss",
    "td_target",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Coefficients of the losses; ``discount`` is a number, or [tasks] with several tasks."""

    discount: float | Tensor
    rho: float = 0.5
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    termination_coef: float = 1.0
    entropy_coef: float = 1e-4
    bc_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """B windows, time first.

    Attributes:
        obs: Per key [H+1, B, ...].
        action: [H, B, A].
        reward: [H, B] received for ``action``.
        terminated: [H, B] 1.0 where the episode terminated on arrival after ``action``.
        task: [B] integer tasks, or None.
        seen: [H, B] 1.0 where the observation after ``action`` was recorded and 0.0 where it is a
            blank, of which only ``reward`` and ``terminated`` count; None where all were.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    terminated: Tensor
    task: Tensor | None = None
    seen: Tensor | None = None


class ModelLoss(NamedTuple):
    """``total`` to descend; ``z`` [H+1, B, L] own rollout of the model; ``metrics`` 0-d tensors
    without gradient; ``td_error`` [B] the value loss of each window, for replay that draws by
    priority.
    """

    total: Tensor
    z: Tensor
    metrics: dict[str, Tensor]
    td_error: Tensor


class PolicyLoss(NamedTuple):
    """``total`` to descend; ``scale`` the running scale after this update; ``metrics`` 0-d tensors
    without gradient.
    """

    total: Tensor
    scale: Tensor
    metrics: dict[str, Tensor]


def time_weights(steps: int, rho: float, like: Tensor) -> Tensor:
    """[steps] rho^t / steps."""
    return rho ** torch.arange(steps, dtype=like.dtype, device=like.device) / steps


def weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    """[H] means of [H, B] errors by 0/1 weights; 0 at a step without any weight."""
    return (error * weight).sum(1) / weight.sum(1).clamp(min=1.0)


@torch.no_grad()
def td_target(
    model: TDMPC2Networks,
    target: EnsembleMLP,
    batch: UpdateBatch,
    draws: UpdateDraws,
    settings: LossSettings,
) -> tuple[Tensor, Tensor]:
    """Latents [H, B, L] of the observations after each action, and their temporal-difference
    targets [H, B].
    """
    task = model.embed(batch.task)
    mask = model.mask(batch.task)
    shift = None if draws.shift is None else draws.shift[1:]
    z = model.encode({key: value[1:] for key, value in batch.obs.items()}, task, shift)
    action = model.policy(z, draws.target_noise, task, mask).action
    layers = [layer.select(draws.target_pair) for layer in target.stacked]
    q = model.bins.mean(ensemble_forward(layers, model.joint(z, action, task).flatten(0, 1)))
    discount = settings.discount
    if isinstance(discount, Tensor) and batch.task is not None:
        discount = discount[batch.task]
    future = q.amin(0).view(batch.reward.shape)
    return z, batch.reward + discount * (1 - batch.terminated) * future


def model_loss(
    model: TDMPC2Networks,
    target: EnsembleMLP,
    batch: UpdateBatch,
    draws: UpdateDraws,
    settings: LossSettings,
) -> ModelLoss:
    """Consistency, reward, value and termination loss of the model's own rollout from the first
    observation.

    An arrival without an observation has no latent to be consistent with, and a value only where
    the episode terminated: there the temporal-difference target is the reward alone.
    """
    horizon = batch.action.shape[0]
    next_z, td = td_target(model, target, batch, draws, settings)
    task = model.embed(batch.task)
    z = [
        model.encode(
            {key: value[0] for key, value in batch.obs.items()},
            task,
            None if draws.shift is None else draws.shift[0],
        )
    ]
    for t in range(horizon):
        z.append(model.next_latent(z[-1], batch.action[t], task))
    rollout = torch.stack(z)  # [H+1, B, L]
    decay = time_weights(horizon, settings.rho, td)

    distance = (rollout[1:] - next_z).square()  # [H, B, L]
    if batch.seen is None:
        consistency = distance.mean((1, 2)) @ decay
    else:
        consistency = weighted_mean(distance.mean(2), batch.seen) @ decay
    joint = model.joint(rollout[:-1], batch.action, task).flatten(0, 1)  # [H*B, L+D+A]
    reward_error = model.bins.loss(
        model.reward_head(joint), model.bins.two_hot(batch.reward.flatten())
    )
    reward = reward_error.view(horizon, -1).mean(1) @ decay
    logits = ensemble_forward(model.critics.stacked, joint, draws.value_dropout)  # [Q, H*B, K]
    value_error = model.bins.loss(logits, model.bins.two_hot(td.flatten()))
    value_error = value_error.view(-1, horizon, td.shape[1])  # [Q, H, B]
    if batch.seen is None:
        value = value_error.mean((0, 2)) @ decay
    else:
        known = torch.maximum(batch.seen, batch.terminated)
        value_error = value_error * known
        value = weighted_mean(value_error.mean(0), known) @ decay
    total = (
        settings.consistency_coef * consistency
        + settings.reward_coef * reward
        + settings.value_coef * value
    )
    metrics = {"consistency_loss": consistency, "reward_loss": reward, "value_loss": value}
    if model.termination is not None:
        ends = model.termination_logits(rollout[1:])
        termination = F.binary_cross_entropy_with_logits(ends, batch.terminated)
        total = total + settings.termination_coef * termination
        metrics |= {"termination_loss": termination} | termination_metrics(
            ends[-1], batch.terminated[-1]
        )
    metrics = {"total_loss": total, **metrics}
    td_error = value_error.detach().mean((0, 1))
    return ModelLoss(
        total, rollout, {name: value.detach() for name, value in metrics.items()}, td_error
    )


def termination_metrics(logits: Tensor, terminated: Tensor) -> dict[str, Tensor]:
    """Rate of terminations and F1 score of the head that predicts them, for [B] logits and 0/1
    targets.
    """
    predicted = (logits > 0).float()
    hits = (predicted * terminated).sum()
    recall = hits / (terminated.sum() + 1e-9)
    precision = hits / (predicted.sum() + 1e-9)
    f1 = 2 * precision * recall / (precision + recall + 1e-9)
    return {"termination_rate": terminated.mean(), "termination_f1": f1}


def policy_values(
    model: TDMPC2Networks, z: Tensor, action: Tensor, task: Tensor | None, draws: UpdateDraws
) -> Tensor:
    """[H+1, B] mean of the drawn pair of critics; differentiable in ``action`` and ``task`` only.

    The latent's part of the first layer needs no gradient at all, so it is kept apart from the
    action's.
    """
    pair = [layer.select(draws.policy_pair).detach() for layer in model.critics.stacked]
    first = pair[0]
    latent = z.shape[-1]
    rest = action if task is None else torch.cat([task.expand(*z.shape[:-1], -1), action], -1)
    shared = StackedLayer(first.weight[:, :, :latent], first.bias).product(z.flatten(0, 1))
    rest = rest.flatten(0, 1).expand(2, -1, -1)
    pre = torch.baddbmm(shared, rest, first.weight[:, :, latent:].transpose(1, 2))
    q = model.bins.mean(ensemble_after_first(pair, pre, draws.policy_dropout))
    return q.mean(0).view(z.shape[:-1])


def cloning_loss(mean: Tensor, action: Tensor, mask: Tensor | None, rho: float) -> Tensor:
    """Squared distance of the policy's mode from the actions that were recorded: what keeps a
    policy near its data where critics would guess.

    Of all rows of a batch, as TD3+BC clones its whole data set (arXiv:2106.06860v2) and TD-M(PC)^2
    holds the prior of TD-MPC2 to what is in its buffer (arXiv:2502.03550v1): rows that the run
    made itself are what its planner found, and worth cloning as well. TD3+BC multiplies the value
    by alpha / mean|Q|, alpha = 2.5, so that one number fits every scale of rewards; here the value
    is divided by the running scale of :func:`policy_loss`, the spread of values instead of their
    size, and the weight stands on this side.

    Args:
        mean: [H+1, B, A] means of the policy before the squashing; the last step has no recorded
            action.
        action: [H, B, A] recorded.
        mask: 0/1 mask that broadcasts to [H, B, A], or None.
        rho: Weight decay of later steps.

    Returns:
        0-d mean over components and windows, later steps weighted as in the other losses.
    """
    error = (torch.tanh(mean[:-1]) - action).square()  # [H, B, A]
    if mask is None:
        distance = error.mean(-1)
    else:
        distance = (error * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)
    return distance.mean(1) @ time_weights(len(action), rho, distance)


def policy_loss(
    model: TDMPC2Networks,
    z: Tensor,
    scale: Tensor,
    task_index: Tensor | None,
    draws: UpdateDraws,
    settings: LossSettings,
    tau: float,
    gather: Callable[[Tensor], Tensor] = SINGLE_PROCESS.gather,
    *,
    trains_tasks: bool = True,
    action: Tensor | None = None,
) -> PolicyLoss:
    """Climb the scaled value of the drawn critics, with an entropy bonus, and near the recorded
    actions where that was asked for (:func:`cloning_loss`).

    The published scaled entropy, -log_prob * (A * gaussian_log_prob / log_prob), is -A *
    gaussian_log_prob: the correction for the squashing cancels. It is computed in this form.

    Args:
        model: Networks; only the policy, and through its input the task embedding, receive
            gradient.
        z: [H+1, B, L] latents, without gradient.
        scale: 0-d running scale before this update.
        task_index: [B] integer tasks, or None.
        draws, settings: As for :func:`model_loss`.
        tau: Speed of the running scale.
        gather: From [B] values to those of all learner ranks, whose spread is the scale.
        trains_tasks: Let the gradient reach the task embedding; False where the loss is added to
            the model's, whose optimizer would follow it.
        action: [H, B, A] recorded actions; needed with ``settings.bc_weight`` only.
    """
    task = model.embed(task_index)
    if task is not None and not trains_tasks:
        task = task.detach()
    mask = model.mask(task_index)
    sample = model.policy(z, draws.policy_noise, task, mask)
    q = policy_values(model, z, sample.action, task, draws)
    new_scale = updated_scale(scale, gather(q[0].detach()), tau)
    actions = sample.action.shape[-1] if mask is None else mask.sum(-1, keepdim=True)
    scaled_entropy = (-actions * sample.gaussian_log_prob()).squeeze(-1)
    gain = settings.entropy_coef * scaled_entropy + q / new_scale
    total = -(gain.mean(1) @ time_weights(len(z), settings.rho, gain))
    metrics = {
        "pi_loss": total,
        "pi_entropy": -sample.log_prob().mean(),
        "pi_scaled_entropy": scaled_entropy.mean(),
        "pi_scale": new_scale,
    }
    if settings.bc_weight and action is not None:
        cloning = cloning_loss(sample.mean, action, mask, settings.rho)
        total = total + settings.bc_weight * cloning
        metrics |= {"pi_loss": total, "bc_loss": cloning}
    return PolicyLoss(total, new_scale, {name: value.detach() for name, value in metrics.items()})
