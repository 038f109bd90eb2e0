"""Open-loop prediction videos: what the model sees, what it believes, and where it errs.

The first half of the steps is filtered with observations; from there on the model predicts alone from the actions that were
taken. Legend: B sequences, T steps, H/W/C image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloom.models.dreamer.layout import ImageKey
from worldloom.models.dreamer.rssm import Posterior, State
from worldloom.models.dreamer.world_model import ModelBatch, WorldModel

__all__ = ["open_loop", "open_loop_videos"]

MAX_SEQUENCES, BORDER = 6, 2
GREEN, RED = (0, 255, 0), (255, 0, 0)


def open_loop(model: WorldModel, batch: ModelBatch, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Filter ``context`` steps, then follow the batch's own actions without observations.

    Returns:
        deter [B, T, D] and stoch [B, T, Z] of all T steps.
    """
    w, sizes, (rows, steps) = model.weights(), model.sizes, batch.reward.shape
    draws = torch.rand(rows, steps, sizes.stoch, generator=generator, device=batch.reward.device)
    tokens = model.tokens({name: value[:, :context] for name, value in batch.obs.items()})
    first = batch.is_first[:, :context]
    seen: Posterior = model.dyn.observe(w, batch.start, batch.action[:, :context], tokens, first, draws[:, :context])
    states = [State(seen.deter[:, -1], seen.stoch[:, -1])]
    for t in range(context, steps):
        states.append(model.dyn.imagine_step(w, states[-1], batch.action[:, t], draws[:, t])[0])
    deter = torch.cat([seen.deter, *(s.deter.unsqueeze(1) for s in states[1:])], 1)
    stoch = torch.cat([seen.stoch, *(s.stoch.unsqueeze(1) for s in states[1:])], 1)
    return deter, stoch


@torch.no_grad()
def open_loop_videos(model: WorldModel, batch: ModelBatch, length: int, generator: torch.Generator) -> dict[str, np.ndarray]:
    """One video per image key.

    Args:
        model: Trained model.
        batch: At least ``length`` steps of up to six sequences are shown.
        length: Steps; the first half has observations.
        generator: Of the latent samples.

    Returns:
        Image key -> uint8 frames [length, 3 H, B W, 3]: truth, model, error from top to bottom, sequences side by side.
        Frames of the filtered half have a green border around model and error, predicted ones a red border. Empty for vectors.
    """
    if not model.obs_layout.images:
        return {}
    rows = min(len(batch.reward), MAX_SEQUENCES)
    short = batch._replace(
        obs={name: value[:rows, :length] for name, value in batch.obs.items()},
        action=batch.action[:rows, :length],
        reward=batch.reward[:rows, :length],
        is_first=batch.is_first[:rows, :length],
        start=State(*(value[:rows] for value in batch.start)),
    )
    deter, stoch = open_loop(model, short, length // 2, generator)
    raw = model.dec.raw(deter.flatten(0, 1), stoch.flatten(0, 1))
    return {key.name: _frames(key, short.obs[key.name], raw[key.name], length) for key in model.obs_layout.images}


def _frames(key: ImageKey, image: Tensor, predicted: Tensor, length: int) -> np.ndarray:
    """Stack truth, model and error. Extra channels of stacked frames are cut to the last one or three."""
    truth = key.pixels(image.flatten(0, 1)).float()
    model = predicted.float()
    colors = 3 if key.channels % 3 == 0 else 1
    panels = [panel[:, -colors:] for panel in (truth, model, (model - truth + 1) / 2)]
    stacked = torch.cat(panels, 2).clamp(0, 1).mul(255).round().to(torch.uint8)
    video = torch.unflatten(stacked, 0, (-1, length)).permute(1, 0, 3, 4, 2).cpu().numpy()  # [T, B, 3H, W, colors]
    video = np.repeat(video, 3, -1) if colors == 1 else video.copy()
    for t in range(length):
        _mark(video[t, :, key.height :], GREEN if t < length // 2 else RED)
    return np.concatenate(list(video.swapaxes(0, 1)), 2)


def _mark(panel: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw a border into [B, height, W, 3], in place."""
    panel[:, :BORDER], panel[:, -BORDER:] = color, color
    panel[:, :, :BORDER], panel[:, :, -BORDER:] = color, color
