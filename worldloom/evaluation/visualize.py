"""Imagination as pictures: what was seen, what the model saw in it, and how they part; PNG, GIF or
mp4.

Images are shown as they are; a vector is drawn as bars, and a model that reconstructs nothing shows
its latent features that way. Legend: T frames, B sequences, Y/X height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded, replacing
from worldloom.evaluation.metrics import open_loop

__all__ = ["imagination_frames", "save_frames", "visualize_imagination"]

BAR_SIDE = 64
BORDER = 2
MAX_BARS = 32


def visualize_imagination(
    model: Any,
    data: Any,
    path: str | PathLike[str],
    *,
    horizon: int = 15,
    warm_up: int = 5,
    sequences: int = 4,
    fps: int = 8,
    seed: int = 0,
) -> Path:
    """Draw imagination beside reality and write it to ``path``.

    Args:
        model: Any world model.
        data: A replay buffer or a batch of sequences.
        path: ``.png`` lays the frames side by side, ``.gif`` and ``.mp4`` play them.
        horizon: Steps to imagine, as in :func:`worldloom.evaluation.evaluate_world_model`.
        warm_up: Observations that are looked at before.
        sequences: Rows of the picture.
        fps: Frames per second of a video.
        seed: Of the draw.
    """
    counts = {"horizon": horizon, "warm_up": warm_up, "sequences": sequences, "fps": fps}
    horizon, warm_up, sequences, fps = (
        checked(name, value, int, Bounds(1)) for name, value in counts.items()
    )
    seed = checked("seed", seed, int, NOT_NEGATIVE)
    if hasattr(data, "sample"):
        data = data.sample(sequences, warm_up + horizon, rng=np.random.default_rng(seed))
    cut = {name: value[:sequences] for name, value in data.items()}
    return save_frames(
        imagination_frames(model, cut, horizon=horizon, warm_up=warm_up), path, fps=fps
    )


def imagination_frames(
    model: Any, batch: Mapping[str, Tensor], *, horizon: int = 15, warm_up: int = 5
) -> np.ndarray:
    """Frames of reality (top), imagination (middle) and their difference (bottom) of every
    sequence.

    Returns:
        ``[T, Y, X, 3]`` uint8; one frame per imagined step, sequences side by side.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = open_loop(model, batch, horizon=horizon, warm_up=warm_up)
    predicted, actual = steps.obs or steps.latent
    pictures = _images if predicted.ndim == 5 else _bars
    low = float(actual.min())
    high = float(actual.max())
    top, middle = (pictures(values, low, high) for values in (actual, predicted))  # [T, B, Y, X, 3]
    bottom = np.abs(top.astype(int) - middle.astype(int)).clip(0, 255).astype(np.uint8)
    rows = [_side_by_side(part) for part in (top, middle, bottom)]
    return np.concatenate(rows, axis=1)


def save_frames(frames: np.ndarray, path: str | PathLike[str], *, fps: int = 8) -> Path:
    """Write ``[T, Y, X, 3]`` uint8 frames as ``.png`` (side by side), ``.gif`` or ``.mp4``.

    Raises:
        ConfigurationError: If the ending is another one.
        MissingDependencyError: If the package that writes it is not installed.
    """
    target = expanded(path)
    kind = target.suffix.lower()
    if kind not in (".png", ".gif", ".mp4"):
        raise ConfigurationError(f"path must end in .png, .gif or .mp4, got {target.name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        (_write_mp4 if kind == ".mp4" else _write_picture)(
            frames, temporary, fps, kind.removeprefix(".")
        )
    return target


def _write_picture(frames: np.ndarray, target: Path, fps: int, kind: str) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pictures", "pillow", "viz") from error
    if kind == "png":
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(target, "png")
        return
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(target, "gif", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _write_mp4(frames: np.ndarray, target: Path, fps: int, kind: str) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependencyError(
            "mp4 videos (a .gif needs only pillow)", "imageio-ffmpeg", "video"
        ) from error
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)))
    size = (even.shape[2], even.shape[1])
    writer = imageio_ffmpeg.write_frames(
        str(target), size, fps=fps, macro_block_size=2, output_params=["-f", kind]
    )
    writer.send(None)
    for frame in even:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _images(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[T, B, C, Y, X] or [T, B, Y, X, C] in [0, 1] -> [T, B, Y, X, 3] uint8."""
    is_first = values.shape[2] < values.shape[4]
    last = np.moveaxis(values, 2, -1) if is_first else values
    channels = last.shape[-1]
    colour = last[..., :3] if channels >= 3 else np.repeat(last[..., :1], 3, axis=-1)
    pixels: np.ndarray = (colour.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _bars(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[T, B, ...] numbers -> [T, B, Y, X, 3]: one bar per number, as high as the number lies in
    [low, high].
    """
    flat = values.reshape(*values.shape[:2], -1)[..., :MAX_BARS]
    height = ((flat - low) / max(high - low, 1e-6)).clip(0, 1) * BAR_SIDE
    level = np.arange(BAR_SIDE)[::-1, None]
    lit = level < height[:, :, None, :]  # [T, B, Y, numbers]
    wide = np.repeat(lit, max(1, BAR_SIDE // flat.shape[-1]), axis=-1)
    return np.repeat(wide[..., None] * np.uint8(220), 3, axis=-1).astype(np.uint8)


def _side_by_side(pictures: np.ndarray) -> np.ndarray:
    """[T, B, Y, X, 3] -> [T, Y + border, B (X + border), 3]."""
    padded = np.pad(
        pictures, ((0, 0), (0, 0), (0, BORDER), (0, BORDER), (0, 0)), constant_values=255
    )
    return np.concatenate([padded[:, b] for b in range(padded.shape[1])], axis=2)
