"""Open-loop predictions as pictures: what the model sees, what it believes, and where it errs.

The first half of the steps is filtered with observations; from there on the model predicts alone
from the actions that were taken. Images become videos; vectors become one picture of curves.
Legend: B sequences, T steps, H/W/C image, V numbers of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.model import ModelBatch, WorldModel
from worldloom.algorithms.dreamerv3.rssm import Posterior, State
from worldloom.core.pixel_text import HEIGHT, with_margin
from worldloom.nn.functional import symexp
from worldloom.nn.layout import ImageKey

__all__ = ["curves", "open_loop", "open_loop_videos"]

MAX_SEQUENCES = 6
MAX_NUMBERS = 8
BORDER = 2
GREEN = (0, 255, 0)
RED = (255, 0, 0)
GREY = (70, 70, 70)
WHITE = (255, 255, 255)
ORANGE = (255, 150, 0)
ROWS = ("truth", "model", "error")
CURVES_KEY = "white truth, orange model; green border: seen, red: imagined"
PANEL = 48
STRIDE = 6
"""Height of a panel of curves and width of a step in it, pixels."""


def open_loop(
    model: WorldModel, batch: ModelBatch, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Filter ``context`` steps, then follow the batch's own actions without observations.

    Returns:
        deter [B, T, D] and stoch [B, T, Z] of all T steps.
    """
    w, sizes, (rows, steps) = model.weights(), model.sizes, batch.reward.shape
    draws = torch.rand(rows, steps, sizes.stoch, generator=generator, device=batch.reward.device)
    tokens = model.tokens({name: value[:, :context] for name, value in batch.obs.items()})
    first = batch.is_first[:, :context]
    seen: Posterior = model.dyn.observe(
        w, batch.start, batch.action[:, :context], tokens, first, draws[:, :context]
    )
    states = [State(seen.deter[:, -1], seen.stoch[:, -1])]
    for t in range(context, steps):
        states.append(model.dyn.imagine_step(w, states[-1], batch.action[:, t], draws[:, t])[0])
    deter = torch.cat([seen.deter, *(s.deter.unsqueeze(1) for s in states[1:])], 1)
    stoch = torch.cat([seen.stoch, *(s.stoch.unsqueeze(1) for s in states[1:])], 1)
    return deter, stoch


@torch.no_grad()
def open_loop_videos(
    model: WorldModel, batch: ModelBatch, length: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """One video per image key and one picture per key of numbers; keys of classes are left out.

    Args:
        model: Trained model.
        batch: At least ``length`` steps of up to six sequences are shown.
        length: Steps; the first half has observations.
        generator: Of the latent samples.

    Returns:
        Image key -> uint8 frames of [3 H, B W, 3] with a margin: truth, model, error from top to
        bottom by name, sequences side by side, above them the step. Frames of the filtered half
        have a green border around model and error, imagined ones a red border. Key of numbers ->
        [1, Y, X, 3], see :func:`curves`, with the scale of every number.
    """
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
    videos = {
        key.name: _labelled(
            _frames(key, short.obs[key.name], raw[key.name], length), key.height, length
        )
        for key in model.obs_layout.images
    }
    for key in model.obs_layout.vectors:
        if not key.classes:
            truth = short.obs[key.name].reshape(rows, length, -1).float()
            predicted = symexp(raw[key.name].float()).reshape(rows, length, -1)
            picture = curves(truth.cpu().numpy(), predicted.cpu().numpy(), length // 2)
            videos[key.name] = with_margin(picture, _scales(truth.cpu().numpy()), [CURVES_KEY])
    return videos


def curves(truth: np.ndarray, predicted: np.ndarray, context: int) -> np.ndarray:
    """Numbers over time, one panel per sequence (side by side) and number (the first eight, top
    down).

    Truth is white and the model's prediction orange; the panel's border is green while the model
    sees, red where it predicts. All panels of a number share its scale, which is that of the truth
    and half as much again on either side. What is not finite (a missing value, a prediction that
    overflows) is drawn as 0.

    Args:
        truth, predicted: [B, T, V].
        context: Steps with observations.

    Returns:
        uint8 [1, Y, X, 3].
    """
    low, high = _ends(truth)
    truth, predicted = (np.where(np.isfinite(values), values, 0.0) for values in (truth, predicted))
    rows = []
    for v in range(min(truth.shape[2], MAX_NUMBERS)):
        rows.append(
            np.concatenate(
                [
                    _panel(t[:, v], p[:, v], (low[v], high[v]), context)
                    for t, p in zip(truth, predicted, strict=True)
                ],
                1,
            )
        )
    return np.concatenate(rows)[None]


def _ends(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the scale of every number, [V] each."""
    truth = np.where(np.isfinite(truth), truth, 0.0)
    low = truth.min((0, 1))
    high = truth.max((0, 1))
    margin = np.maximum((high - low) / 2, 1e-6)
    return low - margin, high + margin


def _scales(truth: np.ndarray) -> list[tuple[int, str]]:
    """Beside every panel: the number's index, and between what its scale goes."""
    labels = []
    for v, (low, high) in enumerate(list(zip(*_ends(truth), strict=True))[:MAX_NUMBERS]):
        down = v * PANEL
        labels += [
            (down + BORDER, f"{high:.4g}"),
            (down + (PANEL - HEIGHT) // 2, f"[{v}]"),
            (down + PANEL - HEIGHT - BORDER, f"{low:.4g}"),
        ]
    return labels


def _labelled(frames: np.ndarray, height: int, length: int) -> np.ndarray:
    """Frames of one image key with the names of their rows and the step."""
    middle = (height - HEIGHT) // 2
    names = [(place * height + middle, name) for place, name in enumerate(ROWS)]
    context = length // 2
    steps = [
        f"step {t + 1}: seen" if t < context else f"step {t + 1}: imagined, {t + 1 - context} ahead"
        for t in range(length)
    ]
    return with_margin(frames, names, steps)


def _panel(
    truth: np.ndarray, predicted: np.ndarray, scale: tuple[float, float], context: int
) -> np.ndarray:
    """One number of one sequence [T] as a picture [PANEL, T STRIDE, 3]."""
    width = len(truth) * STRIDE
    picture = np.zeros((PANEL, width, 3), np.uint8)
    columns = np.arange(width)
    picture[:, context * STRIDE] = GREY
    for values, color in ((truth, WHITE), (predicted, ORANGE)):
        line = np.interp(columns, np.arange(len(values)) * STRIDE + STRIDE / 2, values)
        share = ((line - scale[0]) / (scale[1] - scale[0])).clip(0, 1)
        heights = np.round((1 - share) * (PANEL - 2 * BORDER - 1)).astype(int) + BORDER
        for column, (begin, end) in enumerate(
            zip(heights, np.append(heights[1:], heights[-1]), strict=True)
        ):
            picture[min(begin, end) : max(begin, end) + 1, column] = color
    for part, color in (
        (slice(None, context * STRIDE), GREEN),
        (slice(context * STRIDE, None), RED),
    ):
        picture[:BORDER, part] = color
        picture[-BORDER:, part] = color
    return picture


def _frames(key: ImageKey, image: Tensor, predicted: Tensor, length: int) -> np.ndarray:
    """Stack truth, model and error. Extra channels of stacked frames are cut to the last one or
    three.
    """
    truth = key.pixels(image.flatten(0, 1)).float()
    model = predicted.float()
    colors = 3 if key.channels % 3 == 0 else 1
    panels = [panel[:, -colors:] for panel in (truth, model, (model - truth + 1) / 2)]
    stacked = torch.cat(panels, 2).clamp(0, 1).mul(255).round().to(torch.uint8)
    # [T, B, 3H, W, colors]
    video = torch.unflatten(stacked, 0, (-1, length)).permute(1, 0, 3, 4, 2).cpu().numpy()
    video = np.repeat(video, 3, -1) if colors == 1 else video.copy()
    for t in range(length):
        _mark(video[t, :, key.height :], GREEN if t < length // 2 else RED)
    return np.concatenate(list(video.swapaxes(0, 1)), 2)


def _mark(panel: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw a border into [B, height, W, 3], in place."""
    panel[:, :BORDER] = color
    panel[:, -BORDER:] = color
    panel[:, :, :BORDER] = color
    panel[:, :, -BORDER:] = color
