"""The losses of actor and critic, as pure functions of predictions.

Source: DreamerV3, arXiv:2301.04104v2, Eq. 6-12, with the official code's indices (reward on
arrival) and reductions (means). Legend: N rows, H horizon, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldloom.core.process_group import SINGLE_PROCESS
from worldloom.nn.distributions import two_hot, two_hot_loss, two_hot_mean
from worldloom.nn.returns import NormalizerState, ReturnNormalizer, lambda_return

__all__ = [
    "ImagineLosses",
    "NormalizerState",
    "ReturnNormalizer",
    "imagine_losses",
    "lambda_return",
    "replay_losses",
]


class ImagineLosses(NamedTuple):
    """Result of :func:`imagine_losses`: per-step losses and returns [N, H], weights [N, H], the new
    normaliser, metrics.
    """

    policy: Tensor
    value: Tensor
    returns: Tensor
    normalizer: NormalizerState
    metrics: dict[str, Tensor]


def imagine_losses(
    *,
    log_prob: Tensor,
    entropy: Tensor,
    reward: Tensor,
    cont: Tensor,
    value_logits: Tensor,
    slow_logits: Tensor,
    bins: Tensor,
    normalizer: ReturnNormalizer,
    state: NormalizerState,
    discount: float,
    lam: float,
    entropy_scale: float,
    slow_scale: float,
    slow_target: bool = False,
    gather: Callable[[Tensor], Tensor] = SINGLE_PROCESS.gather,
) -> ImagineLosses:
    """Actor and critic losses on imagined trajectories of H steps (H+1 states).

    Args:
        log_prob, entropy: [N, H+1] of the actions taken; gradient flows into the actor.
        reward, cont: [N, H+1] predictions, no gradient.
        value_logits: [N, H+1, bins]; gradient flows into the critic.
        slow_logits: [N, H+1, bins] of the slow critic.
        bins: Two-hot bins.
        normalizer, state: Scale of the returns; updated with this batch before it is used.
        discount: 1 when ``cont`` already contains the discount, else 1 - 1/horizon.
        lam: Weight of longer returns.
        entropy_scale, slow_scale: Factors of the entropy bonus and of the regulariser towards the
            slow critic.
        slow_target: Compute returns from the slow critic.
        gather: From [N, H] returns to those of all learner ranks, whose statistics are the scale.
    """
    reward = reward.detach()
    cont = cont.detach()
    value = two_hot_mean(value_logits.detach(), bins)
    slow = two_hot_mean(slow_logits.detach(), bins)
    target = slow if slow_target else value
    weight = torch.cumprod(discount * cont, 1) / discount
    returns = lambda_return(
        reward, cont, torch.full_like(cont, lam), target, target[:, -1], discount=discount
    )
    state = normalizer.update(state, gather(returns))
    offset, scale = normalizer.offset_scale(state)
    advantage = (returns - target[:, :-1]) / scale
    policy = -weight[:, :-1] * (log_prob[:, :-1] * advantage + entropy_scale * entropy[:, :-1])
    targets = [two_hot(returns, bins), two_hot(slow[:, :-1], bins)]
    critic = weight[:, :-1] * two_hot_loss(value_logits[:, :-1], targets, [1.0, slow_scale])
    scaled = (returns - offset) / scale
    metrics = {
        "adv": advantage.mean(),
        "adv_std": advantage.std(correction=0),
        "adv_mag": advantage.abs().mean(),
        "rew": reward.mean(),
        "con": cont.mean(),
        "val": value.mean(),
        "slowval": slow.mean(),
        "weight": weight.mean(),
        "tar": returns.mean(),
        "ret": scaled.mean(),
        "ret_min": scaled.min(),
        "ret_max": scaled.max(),
        "ret_rate": (scaled.abs() >= 1).float().mean(),
    }
    return ImagineLosses(policy, critic, returns, state, metrics)


def replay_losses(
    *,
    reward: Tensor,
    is_last: Tensor,
    terminated: Tensor,
    boot: Tensor,
    value_logits: Tensor,
    slow_logits: Tensor,
    bins: Tensor,
    discount: float,
    lam: float,
    slow_scale: float,
) -> tuple[Tensor, Tensor]:
    """Critic loss on the replayed trajectory itself, with the imagined returns as bootstrap values.

    Args:
        reward, is_last, terminated: [B, T] real rewards and flags (bool).
        boot: [B, T] imagined lambda-return from each step.
        value_logits: [B, T, bins] with gradient (it reaches the world model).
        slow_logits: [B, T, bins].
        bins: Two-hot bins.
        discount: 1 - 1/horizon.
        lam: Weight of longer returns.
        slow_scale: Factor of the regulariser.

    Returns:
        Loss and returns, both [B, T-1].
    """
    last = is_last.float()
    cont = (~terminated).float()
    returns = lambda_return(reward, cont, (1 - last) * lam, boot, boot[:, -1], discount=discount)
    slow = two_hot_mean(slow_logits.detach(), bins)
    targets = [two_hot(returns, bins), two_hot(slow[:, :-1], bins)]
    loss = (1 - last[:, :-1]) * two_hot_loss(value_logits[:, :-1], targets, [1.0, slow_scale])
    return loss, returns
