"""The plain latent model's predictions beside what came; see
:class:`worldloom.core.foresight.Foresight`.

A prediction is the mean over the members. The model disagrees with itself where they differ: the
root of their variance at an imagined row, as a share of the encoded rows' own. Legend: B windows,
T rows, W seen, K imagined, M members.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.mlp.losses import WindowBatch
from worldloom.algorithms.mlp.model import Networks
from worldloom.core.foresight import Foresight
from worldloom.nn.functional import to_numpy

__all__ = ["foresight"]

LEAST_SPREAD = 1e-6


@torch.no_grad()
def foresight(networks: Networks, batch: WindowBatch, warm_up: int, discount: float) -> Foresight:
    """Encode all rows of a batch, and imagine all but the first ``warm_up``.

    Args:
        networks: Trained ones.
        batch: Windows, time first.
        warm_up: W; only the last of these rows is needed.
        discount: Of the values.
    """
    model = networks.model
    rows = batch.vector.shape[:2]
    vector = batch.vector.flatten(0, 1)
    image = None if batch.image is None else batch.image.flatten(0, 1)
    seen = torch.unflatten(model.encode_parts(vector, image), 0, rows)  # [T, B, L]
    target = torch.unflatten(model.target(vector, image), 0, rows)
    latent = seen[warm_up - 1].expand(model.dynamics.members, -1, -1)
    path = []
    for action in batch.action[warm_up - 1 :]:
        latent = model.next(latent, action.expand(len(latent), -1, -1))
        path.append(latent)
    ahead = torch.stack(path, 1)  # [M, K, B, L]
    lead = ahead.shape[:3]
    reward, logit = (
        torch.unflatten(part, 1, lead[1:]) for part in model.arrival(ahead.flatten(1, 2))
    )
    spread = seen.var((0, 1), correction=0).mean().sqrt().clamp(min=LEAST_SPREAD)
    apart = ahead.var(0, correction=0).mean(-1).sqrt() / spread
    sizes = [model.obs.vector_width, model.pixels]
    decoded = torch.split(model.decoder(ahead).mean(0), sizes, -1)
    came = torch.split(target[warm_up:], sizes, -1)
    pairs = [
        (_windows_first(one), _windows_first(other))
        for one, other in zip(decoded, came, strict=True)
    ]
    return Foresight(
        latent=(_windows_first(ahead.mean(0)), _windows_first(seen[warm_up:])),
        obs={"obs": pairs[0]} if sizes[0] else {},
        pixels={"image": pairs[1]} if sizes[1] else {},
        reward=to_numpy(reward.mean(0).T),
        goes_on=to_numpy(torch.sigmoid(-logit).mean(0).T),
        value=to_numpy(networks.value(seen).T),
        discount=discount,
        disagreement=to_numpy(apart.T),
    )


def _windows_first(tensor: Tensor) -> np.ndarray:
    return to_numpy(tensor.transpose(0, 1))
