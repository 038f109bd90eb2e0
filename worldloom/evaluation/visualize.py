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
from worldloom.core.pixel_text import GAP, HEIGHT, draw_text, text_size, with_margin
from worldloom.evaluation.metrics import OpenLoop, open_loop

__all__ = [
    "check_picture",
    "imagination_frames",
    "imagination_strip",
    "save_frames",
    "visualize_imagination",
]

BAR_SIDE = 64
BORDER = 2
MAX_BARS = 32
MOST_COLUMNS = 12
ROWS = ("reality", "imagined", "error")
PAPER = (255, 255, 255)
INK = (40, 44, 50)
ACCENT = (213, 94, 0)
LINE = 8
"""Pixels between what was seen and what is imagined."""


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
    check_picture(path)
    counts = {"horizon": horizon, "warm_up": warm_up, "sequences": sequences, "fps": fps}
    horizon, warm_up, sequences, fps = (
        checked(name, value, int, Bounds(1)) for name, value in counts.items()
    )
    seed = checked("seed", seed, int, NOT_NEGATIVE)
    if hasattr(data, "sample"):
        data = data.sample(sequences, warm_up + horizon, rng=np.random.default_rng(seed))
    cut = {name: value[:sequences] for name, value in data.items()}
    if expanded(path).suffix.lower() == ".png":
        strip = imagination_strip(model, cut, horizon=horizon, warm_up=warm_up)
        return save_frames(strip[None], path)
    frames = imagination_frames(model, cut, horizon=horizon, warm_up=warm_up)
    height = frames.shape[1] // len(ROWS)
    names = [(row * height + (height - HEIGHT) // 2, name) for row, name in enumerate(ROWS)]
    steps = [f"{step + 1} of {horizon} ahead" for step in range(horizon)]
    return save_frames(with_margin(frames, names, steps), path, fps=fps)


def imagination_frames(
    model: Any, batch: Mapping[str, Tensor], *, horizon: int = 15, warm_up: int = 5
) -> np.ndarray:
    """Frames of reality (top), imagination (middle) and their difference (bottom) of every
    sequence.

    Returns:
        ``[T, Y, X, 3]`` uint8; one frame per imagined step, sequences side by side.
    """
    steps = _steps(model, batch, horizon, warm_up)
    predicted, actual = steps.obs or steps.latent
    rows = [_side_by_side(part) for part in _three_rows(predicted, actual)]
    return np.concatenate(rows, axis=1)


def imagination_strip(
    model: Any, batch: Mapping[str, Tensor], *, horizon: int = 15, warm_up: int = 5
) -> np.ndarray:
    """Imagination beside reality on one picture: time from left to right, for every sequence a row
    of reality, one of imagination and one of their difference, a line where imagination begins,
    steps above and the scale below.

    Left of the line is the last observation that the model saw, and what it makes of it. At most
    twelve of the imagined steps are shown, evenly apart.

    Returns:
        ``[Y, X, 3]`` uint8.
    """
    steps = _steps(model, batch, horizon, warm_up)
    predicted, actual = steps.obs or steps.latent
    if steps.reconstruction is not None:
        seen = [
            np.concatenate([own[None], values])
            for own, values in zip(steps.reconstruction, (predicted, actual), strict=True)
        ]
        predicted, actual = seen
    start = len(predicted) - horizon  # columns before the line
    shown = [*range(start), *_spread(start, len(predicted), MOST_COLUMNS)]
    low, high = float(actual.min()), float(actual.max())
    rows = [
        np.repeat(np.repeat(part, _larger(part), 2), _larger(part), 3)[shown]
        for part in _three_rows(predicted, actual)
    ]  # [columns, B, Y, X, 3]
    side = rows[0].shape[2] + BORDER, rows[0].shape[3] + BORDER
    left = text_size(max(ROWS, key=len))[1] + 2 * GAP
    top, gap, foot = 2 * (HEIGHT + GAP) + GAP, HEIGHT + GAP, HEIGHT + 2 * GAP
    block = len(ROWS) * side[0] + gap
    line = LINE if start else 0
    scale = _scale_text(predicted, steps.obs is not None, low, high)
    width = max(left + len(shown) * side[1] + line, text_size(scale)[1] + 2 * GAP)
    made = np.full((top + block * rows[0].shape[1] + foot, width, 3), PAPER, np.uint8)
    places = [left + c * side[1] + (line if c >= start else 0) for c in range(len(shown))]
    for sequence in range(rows[0].shape[1]):
        for place, (name, part) in enumerate(zip(ROWS, rows, strict=True)):
            down = top + sequence * block + place * side[0]
            draw_text(made, name, down + (side[0] - HEIGHT) // 2, GAP, INK)
            for column, right in enumerate(places):
                picture = part[column, sequence]
                made[down : down + picture.shape[0], right : right + picture.shape[1]] = picture
    for column, (step, right) in enumerate(zip(shown, places, strict=True)):
        text = "seen" if column < start else f"+{step - start + 1}"
        draw_text(made, text, HEIGHT + 2 * GAP, right, INK)
    draw_text(made, "imagined steps", GAP, places[start], INK)
    if start:
        made[GAP:-foot, places[start] - line + 2 : places[start] - 2] = ACCENT
    draw_text(made, scale, made.shape[0] - HEIGHT - GAP, GAP, INK)
    return made


def _steps(model: Any, batch: Mapping[str, Tensor], horizon: int, warm_up: int) -> OpenLoop:
    """The same draws for equal calls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_loop(model, batch, horizon=horizon, warm_up=warm_up)


def _three_rows(predicted: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reality, imagination, and how far they are apart, ``[T, B, Y, X, 3]`` uint8 each."""
    pictures = _images if predicted.ndim == 5 else _bars
    low = float(actual.min())
    high = float(actual.max())
    top, middle = (pictures(values, low, high) for values in (actual, predicted))
    bottom = np.abs(top.astype(int) - middle.astype(int)).clip(0, 255).astype(np.uint8)
    return top, middle, bottom


def _spread(first: int, last: int, most: int) -> list[int]:
    """At most ``most`` of the numbers from ``first`` up to ``last``, evenly apart."""
    count = min(most, last - first)
    return [int(number) for number in np.linspace(first, last - 1, count).round()]


def _larger(pictures: np.ndarray) -> int:
    """By how much small pictures are enlarged."""
    height: int = pictures.shape[2]
    return max(1, BAR_SIDE // height)


def _scale_text(values: np.ndarray, is_obs: bool, low: float, high: float) -> str:
    """What brightness or the height of a bar means."""
    if values.ndim == 5:
        return "error: black none, white all"
    count = int(np.prod(values.shape[2:]))
    what = "numbers of the observation" if is_obs else "latent features"
    part = f"the first {MAX_BARS} of {count} {what}" if count > MAX_BARS else f"{count} {what}"
    return f"bars: {part}, {low:.4g} (empty) to {high:.4g} (full)"


def check_picture(path: str | PathLike[str]) -> None:
    """Refuse a picture that cannot be written, before anything is computed.

    Raises:
        ConfigurationError: If its ending is none of .png, .gif and .mp4.
        MissingDependencyError: If the package that writes it is not installed.
    """
    target = expanded(path)
    kind = target.suffix.lower()
    if kind not in (".png", ".gif", ".mp4"):
        raise ConfigurationError(f"path must end in .png, .gif or .mp4, got {target.name!r}")
    _video_package() if kind == ".mp4" else _picture_package()


def save_frames(frames: np.ndarray, path: str | PathLike[str], *, fps: int = 8) -> Path:
    """Write ``[T, Y, X, 3]`` uint8 frames as ``.png`` (side by side), ``.gif`` or ``.mp4``.

    Raises:
        ConfigurationError: If the ending is another one.
        MissingDependencyError: If the package that writes it is not installed.
    """
    check_picture(path)
    target = expanded(path)
    kind = target.suffix.lower()
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        (_write_mp4 if kind == ".mp4" else _write_picture)(
            frames, temporary, fps, kind.removeprefix(".")
        )
    return target


def _picture_package() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("a picture", "pillow", "viz") from error
    return Image


def _video_package() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependencyError(
            "mp4 videos (a .gif needs only pillow)", "imageio-ffmpeg", "video"
        ) from error
    return imageio_ffmpeg


def _write_picture(frames: np.ndarray, target: Path, fps: int, kind: str) -> None:
    Image = _picture_package()
    if kind == "png":
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(target, "png")
        return
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(target, "gif", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _write_mp4(frames: np.ndarray, target: Path, fps: int, kind: str) -> None:
    imageio_ffmpeg = _video_package()
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
    """[T, B, C, Y, X] or [T, B, Y, X, C] -> [T, B, Y, X, 3] uint8; other numbers than those in
    [0, 1] are black at ``low`` and white at ``high``.
    """
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-6)
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
