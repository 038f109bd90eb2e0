"""DreamerV3's predictions beside what came; see :class:`worldloom.core.foresight.Foresight`.

The model disagrees with itself where it reads its own decoded observation in another way than it
imagined the state: mean total variation between the prior of an imagined step and the posterior
that the decoded observation gives. One without a decoder disagrees where a second imagination, of
the same actions and with other draws, has another prior; that is chance more than ignorance.
Legend: B windows, T rows, W seen, K imagined, S categoricals.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worldloom.algorithms.dreamerv3.model import LatentModel, ModelBatch, WorldModel
from worldloom.algorithms.dreamerv3.networks import Networks
from worldloom.algorithms.dreamerv3.rssm import State
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.core.foresight import Foresight
from worldloom.core.specs import ArraySpec
from worldloom.nn.distributions import two_hot_mean, unimix_probs
from worldloom.nn.functional import to_numpy
from worldloom.nn.layout import ImageKey

__all__ = ["foresight"]


@torch.no_grad()
def foresight(
    networks: Networks, specs: Mapping[str, ArraySpec], batch: ModelBatch, warm_up: int
) -> Foresight:
    """Filter all rows of a batch, and imagine all but the first ``warm_up``.

    Args:
        networks: Trained ones.
        specs: Observations as the env gives them.
        batch: Windows from the start of nothing (no stored latents).
        warm_up: W.
    """
    model = networks.model
    config = networks.config
    w = model.weights()
    rows, steps = batch.reward.shape
    place = batch.reward.device
    draws = torch.rand(
        rows,
        steps,
        model.sizes.stoch,
        generator=torch.Generator(place).manual_seed(0),
        device=place,
    )
    seen = model.observe(w, batch, draws)
    start = State(seen.deter[:, warm_up - 1], seen.stoch[:, warm_up - 1])
    action = batch.action[:, warm_up:]
    ahead, priors = _imagined(model, w, start, action, draws[:, warm_up:])
    feature = torch.cat([ahead.deter, ahead.stoch], -1)
    decoded: dict[str, Tensor] = {}
    if isinstance(model, WorldModel):
        decoded = model.dec(ahead.deter.flatten(0, 1), ahead.stoch.flatten(0, 1))
        others = _reread(model, specs, ahead, decoded).view_as(priors)
    else:
        draws = (draws + 0.5) % 1
        again = model.dyn.sample(seen.logits[:, warm_up - 1], draws[:, warm_up - 1])[0]
        others = _imagined(model, w, State(start.deter, again), action, draws[:, warm_up:])[1]
    unimix = model.sizes.unimix
    gap = unimix_probs(others, unimix) - unimix_probs(priors, unimix)
    pairs = {
        name: (_flat(value, rows), _flat(_seen(model, batch, name, warm_up), rows))
        for name, value in decoded.items()
    }
    images = {key.name for key in model.obs_layout.images}
    cont_scale = 1.0 - 1.0 / config.horizon if config.learn_discount else 1.0
    return Foresight(
        latent=(to_numpy(feature), to_numpy(seen.feature[:, warm_up:])),
        obs={name: pair for name, pair in pairs.items() if name not in images},
        pixels={name: pair for name, pair in pairs.items() if name in images},
        reward=to_numpy(model.reward(feature)),
        goes_on=to_numpy((model.cont(feature) / max(cont_scale, 1e-6)).clamp(max=1.0)),
        value=to_numpy(two_hot_mean(networks.critic(seen.feature)["logits"], model.bins)),
        discount=1.0 - 1.0 / config.horizon,
        disagreement=to_numpy(gap.abs().sum(-1).mean(-1) / 2),
    )


def _seen(model: LatentModel, batch: ModelBatch, name: str, warm_up: int) -> Tensor:
    """An observation [B K, ...] in the decoder's units."""
    value = batch.obs[name][:, warm_up:].flatten(0, 1)
    for image in model.obs_layout.images:
        if image.name == name:
            return image.pixels(value)
    key = next(key for key in model.obs_layout.vectors if key.name == name)
    return key.encode(value) if key.classes else value.flatten(1).float()


def _imagined(
    model: LatentModel, w: CellWeights, state: State, action: Tensor, draws: Tensor
) -> tuple[State, Tensor]:
    """States [B, K, ...] and prior logits [B, K, S, C] after given actions."""
    states = []
    logits = []
    for t in range(action.shape[1]):
        state, prior = model.dyn.imagine_step(w, state, action[:, t], draws[:, t])
        states.append(state)
        logits.append(prior)
    ahead = State(*(torch.stack(parts, 1) for parts in zip(*states, strict=True)))
    return ahead, torch.stack(logits, 1)


def _reread(
    model: WorldModel, specs: Mapping[str, ArraySpec], ahead: State, decoded: Mapping[str, Tensor]
) -> Tensor:
    """Posterior logits [B, K, Z] of imagined states, given what they decode to."""
    lead = ahead.deter.shape[:2]
    obs = {name: _as_given(model, name, specs[name], value) for name, value in decoded.items()}
    tokens = model.tokens({name: torch.unflatten(value, 0, lead) for name, value in obs.items()})
    joint = torch.cat([ahead.deter, tokens.to(ahead.deter.dtype)], -1)
    logits: Tensor = model.dyn.obs_logit(model.dyn.obs(joint))
    return logits


def _as_given(model: WorldModel, name: str, spec: ArraySpec, value: Tensor) -> Tensor:
    """A decoded key [N, ...] as the env would give it; classes are the most likely ones."""
    for image in model.obs_layout.images:
        if image.name == name:
            return _as_picture(image, spec, value)
    key = next(key for key in model.obs_layout.vectors if key.name == name)
    if key.classes:
        parts = torch.split(value, list(key.classes), -1)
        value = torch.stack([part.argmax(-1) for part in parts], -1)
    return value.reshape(len(value), *spec.shape)


def _as_picture(key: ImageKey, spec: ArraySpec, value: Tensor) -> Tensor:
    """[N, C, h, w] in [0, 1] to the env's axes, size and range."""
    if key.shrink > 1:
        height, width = spec.shape[1:] if key.channels_first else spec.shape[:2]
        value = functional.interpolate(value, size=(height, width))
    picture = value.mul(255).round().to(torch.uint8)
    return picture if key.channels_first else picture.movedim(1, -1)


def _flat(value: Tensor, rows: int) -> np.ndarray:
    return to_numpy(torch.unflatten(value.float().flatten(1), 0, (rows, -1)))
