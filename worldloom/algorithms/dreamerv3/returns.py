"""Lambda-returns, their normaliser, and the losses of actor and critic, as pure functions of
predictions.

Source: DreamerV3, arXiv:2301.04104v2, Eq. 6-12, with the official code's indices (reward on
arrival) and reductions (means). Legend: N rows, H horizon, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.process_group import SINGLE_PROCESS
from worldloom.nn.distributions import two_hot, two_hot_loss, two_hot_mean

__all__ = [
    "ImagineLosses",
    "NormalizerState",
    "ReturnNormalizer",
    "imagine_losses",
    "lambda_return",
    "replay_losses",
]


def lambda_return(
    reward: Tensor, cont: Tensor, carry: Tensor, value: Tensor, boot: Tensor, *, discount: float
) -> Tensor:
    """Bootstrapped return of a trajectory, computed backwards.

    R[t] = reward[t+1] + discount cont[t+1] ((1 - carry[t+1]) value[t+1] + carry[t+1] R[t+1])
    R[last] = boot

    Args:
        reward: [N, H+1] reward received on arrival; column 0 is unused.
        cont: [N, H+1] 1 (or a probability) where the episode goes on.
        carry: [N, H+1] weight of the longer return: lambda, or 0 where the trajectory ends.
        value: [N, H+1] values in reward units.
        boot: [N] value at the last step.
        discount: In (0, 1].

    Returns:
        [N, H] returns of steps 0..H-1.

    Raises:
        ShapeMismatchError: If the shapes differ.
    """
    if not reward.shape == cont.shape == value.shape == carry.shape:
        shapes = [tuple(x.shape) for x in (cont, carry, value)]
        raise ShapeMismatchError("lambda_return: cont, carry, value", tuple(reward.shape), shapes)
    live = discount * cont
    base = reward + live * (1 - carry) * value
    keep = live * carry
    returns = [boot]
    for t in range(reward.shape[1] - 1, 0, -1):
        returns.append(base[:, t] + keep[:, t] * returns[-1])
    return torch.stack(returns[:0:-1], 1)


class NormalizerState(NamedTuple):
    """Running statistics, all 0-d float32 and 0 at the start: (low, high) percentiles or (mean,
    mean square), and ``weight``, the share of real data in them (used only with ``debias``).
    """

    first: Tensor
    second: Tensor
    weight: Tensor


class ReturnNormalizer(NamedTuple):
    """Running scale of returns: range between two percentiles, or mean and deviation.

    Without ``debias`` the averages start at 0 and are used as they are, as DreamerV3 does.
    """

    kind: Literal["percentile", "meanstd"] = "percentile"
    rate: float = 0.01
    limit: float = 1.0
    low: float = 0.05
    high: float = 0.95
    debias: bool = False

    def initial(self, device: torch.device | str = "cpu") -> NormalizerState:
        """Zeros."""
        return NormalizerState(*(torch.zeros((), device=device) for _ in range(3)))

    def update(self, state: NormalizerState, values: Tensor) -> NormalizerState:
        """Move the averages towards the statistics of ``values`` (any shape)."""
        flat = values.detach().flatten()
        if self.kind == "percentile":
            ordered = flat.sort().values
            first = _percentile(ordered, self.low)
            second = _percentile(ordered, self.high)
        else:
            first = flat.mean()
            second = flat.square().mean()
        new = (first, second, torch.ones_like(state.weight))
        return NormalizerState(
            *((1 - self.rate) * a + self.rate * b for a, b in zip(state, new, strict=True))
        )

    def offset_scale(self, state: NormalizerState) -> tuple[Tensor, Tensor]:
        """What to subtract and what to divide by."""
        fix = state.weight.clamp(min=self.rate) if self.debias else 1.0
        first = state.first / fix
        second = state.second / fix
        if self.kind == "percentile":
            return first, (second - first).clamp(min=self.limit)
        return first, (second - first.square()).clamp(min=0).sqrt().clamp(min=self.limit)


def _percentile(ordered: Tensor, level: float) -> Tensor:
    """Linear interpolation in sorted values; the positions are known beforehand, so nothing waits
    for the device.
    """
    position = level * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)


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
