"""Films of evaluation episodes. Nothing here may harm an evaluation: what cannot be drawn or written is logged and left out."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.specs import EnvSpec
from worldloom.envs.vector import EnvStep, VectorEnv

__all__ = ["Recorder", "write_films"]

logger = logging.getLogger(__name__)

LARGEST_SIDE, MOST_FRAMES, FRAMES_PER_S = 256, 1000, 20


class Recorder:
    """Records the first episode of the first ``count`` envs of a vector.

    A frame is the image that the env observes, else what the env renders, in the size of the film's first frame.

    Args:
        env: The envs, stepped by somebody else.
        count: Episodes to record.
    """

    def __init__(self, env: VectorEnv, count: int) -> None:
        self._env = env
        self._frames: list[list[np.ndarray]] = [[] for _ in range(min(count, env.num_envs))]
        self._is_over = [False] * len(self._frames)
        self._image = _image_key(env.spec)

    def see(self, row: EnvStep) -> None:
        """Take the frames of a row."""
        for index, frames in enumerate(self._frames):
            if self._is_over[index] or not row.live[index]:
                continue
            if row.is_first[index]:
                frames.clear()
            if len(frames) < MOST_FRAMES:
                self._take(row, index)
            self._is_over[index] = self._is_over[index] or bool(row.is_last[index])

    @property
    def films(self) -> list[np.ndarray]:
        """``[T, Y, X, 3]`` uint8 for each episode of which there are pictures."""
        return [np.stack(frames) for frames in self._frames if frames]

    def _take(self, row: EnvStep, index: int) -> None:
        try:
            picture = row.obs[self._image][index] if self._image else _rendered(self._env, index)
            frame, frames = _rgb(picture), self._frames[index]
            frames.append(_resized(frame, frames[0].shape) if frames else frame)
        except Exception as error:  # the edge of somebody else's renderer
            logger.warning("no film of env %s: it cannot be drawn (%s: %s)", self._env.spec.name, type(error).__name__, error)
            self._is_over[index] = True


def write_films(films: list[np.ndarray], folder: Path, label: str) -> list[Path]:
    """Write films as ``LABEL-0.mp4``, ... (``.gif`` where there is no ffmpeg); returns the paths of those that could be written."""
    from worldloom.evaluation.visualize import save_frames

    ending = "mp4" if importlib.util.find_spec("imageio_ffmpeg") else "gif"
    written = []
    for number, film in enumerate(films):
        try:
            written.append(save_frames(film, folder / f"{label}-{number}.{ending}", fps=FRAMES_PER_S))
        except Exception as error:  # the edge of somebody else's encoder
            logger.warning("film %s-%d could not be written: %s: %s", label, number, type(error).__name__, error)
    return written


def _image_key(spec: EnvSpec) -> str | None:
    return next((key for key, array in spec.obs.items() if array.is_image), None)


def _rendered(env: VectorEnv, index: int) -> np.ndarray:
    render: Any = getattr(env, "render", None)
    picture = render(index) if render is not None else None
    if picture is None:
        raise ValueError("it renders nothing")
    return np.asarray(picture)


def _rgb(picture: np.ndarray) -> np.ndarray:
    """[Y, X] or [Y, X, channels] -> [Y, X, 3], the newest frame of a stack, at most ``LARGEST_SIDE`` wide and high."""
    picture = picture[..., None] if picture.ndim == 2 else picture
    if picture.ndim != 3 or not picture.size:
        raise ValueError(f"a picture must be [Y, X] or [Y, X, channels], got {picture.shape}")
    step = -(-max(picture.shape[:2]) // LARGEST_SIDE)
    small = picture[::step, ::step]
    newest = small[..., -3:] if small.shape[-1] % 3 == 0 else np.repeat(small[..., -1:], 3, axis=-1)
    return np.ascontiguousarray(newest, np.uint8)


def _resized(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[Y, X, 3] as ``shape``, by the nearest pixel; the same picture when it has that shape."""
    if picture.shape == shape:
        return picture
    down, right = (np.arange(size) * own // size for own, size in zip(picture.shape[:2], shape[:2], strict=True))
    resized: np.ndarray = picture[down][:, right]
    return resized
