"""TD-MPC2's predictions beside what came; see :class:`worldloom.core.foresight.Foresight`.

The model disagrees with itself where its critics differ: their standard deviation at an imagined
row, as a share of the values' deviation over all of them. It reconstructs no observation. Legend:
B windows, T rows, W seen, K imagined.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.losses import UpdateBatch
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.core.foresight import Foresight
from worldloom.nn.functional import to_numpy

__all__ = ["foresight"]

LEAST_SPREAD = 1e-6


@torch.no_grad()
def foresight(
    model: TDMPC2Networks, batch: UpdateBatch, warm_up: int, discount: float
) -> Foresight:
    """Encode all rows of a batch, and imagine all but the first ``warm_up``.

    Args:
        model: Trained networks.
        batch: Windows of T transitions, time first.
        warm_up: W; only the last of these rows is needed.
        discount: Of the values.
    """
    task = model.embed_copy(batch.task)
    seen = model.encode(batch.obs, task)  # [T, B, L]
    z = seen[warm_up - 1]
    latents = []
    rewards = []
    for action in batch.action[warm_up - 1 :]:
        rewards.append(model.reward(z, action, task))
        z = model.next_latent(z, action, task)
        latents.append(z)
    ahead = torch.stack(latents)
    chosen = _values(model, ahead, batch.task)
    spread = chosen.mean(0).std(correction=0).clamp(min=LEAST_SPREAD)
    goes_on = None
    if model.termination is not None:
        goes_on = to_numpy(torch.sigmoid(-model.termination_logits(ahead)).T)
    return Foresight(
        latent=(_windows_first(ahead), _windows_first(seen[warm_up:])),
        reward=to_numpy(torch.stack(rewards).T),
        goes_on=goes_on,
        value=to_numpy(_values(model, seen, batch.task).mean(0).T),
        discount=discount,
        disagreement=to_numpy((chosen.std(0, correction=0) / spread).T),
    )


def _values(model: TDMPC2Networks, z: Tensor, index: Tensor | None) -> Tensor:
    """What every critic says of the policy's mean action. [T, B, L] -> [Q, T, B]."""
    flat = z.flatten(0, -2)
    of_rows = None if index is None else index.expand(z.shape[:-1]).flatten()
    task = model.embed_copy(of_rows)
    noise = flat.new_zeros(len(flat), model.architecture.action_dim)
    action = model.policy(flat, noise, task, model.mask(of_rows)).action
    values = model.bins.mean(model.critic_logits(flat, action, task))
    return torch.unflatten(values, 1, z.shape[:-1])


def _windows_first(tensor: Tensor) -> np.ndarray:
    return to_numpy(tensor.transpose(0, 1))
