"""Videos of evaluation episodes. Nothing here may harm an evaluation: what cannot be drawn or
written is logged, left out and named.

Legend: T frames, Y and X the sides of a picture.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import inside
from worldloom.core.images import find_image_layout
from worldloom.core.pixel_text import draw_text, text_size
from worldloom.core.specs import EnvSpec
from worldloom.envs.building import error_text
from worldloom.envs.vector import EnvStep, VectorEnv

__all__ = ["Recorder", "VideoReport", "captioned", "picture_of", "save_videos"]

logger = logging.getLogger(__name__)

LARGEST_SIDE = 256
MOST_FRAMES = 1000
CAPTION_HEIGHT = 12
CAPTION_WIDTH = 160
"""Pixels that the line below a picture takes at most."""
FRAMES_PER_S = 20
COLOURS = (3, 4)
"""Channels of a picture in colour, without and with opacity, which a video does not show."""


@dataclass(frozen=True, slots=True)
class VideoReport:
    """What became of the videos that were asked for.

    Attributes:
        paths: Those that are written.
        problems: Why others are not, one sentence each.
    """

    paths: tuple[Path, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        """As an evaluation has it in ``summary.json``: names of files, and problems where there are
        some.
        """
        facts = {"videos": [path.name for path in self.paths]}
        return facts | ({"video_problems": list(self.problems)} if self.problems else {})


class Recorder:
    """Records the first episode of the first ``count`` envs of a vector.

    A frame is the image that the env observes, else what the env renders, in the size of the
    video's first frame.

    Args:
        env: The envs, stepped by someone else.
        count: Episodes to record.

    Attributes:
        problems: Why videos are missing, one sentence each.
    """

    def __init__(self, env: VectorEnv, count: int) -> None:
        self._env = env
        self._frames: list[list[np.ndarray]] = [[] for _ in range(min(count, env.num_envs))]
        self._returns: list[list[float]] = [[] for _ in self._frames]
        self._is_over = [False] * len(self._frames)
        self._image = _image_key(env.spec)
        self.problems: list[str] = []
        if count > env.num_envs:
            self._miss(
                f"{count} videos were asked for and {env.num_envs} envs play; ask for "
                "as many episodes as videos"
            )

    def see(self, row: EnvStep) -> None:
        """Take the frames of a row."""
        for index, frames in enumerate(self._frames):
            if self._is_over[index] or not row.live[index]:
                continue
            if row.is_first[index]:
                frames.clear()
                self._returns[index].clear()
            if len(frames) < MOST_FRAMES:
                self._take(row, index)
            elif len(frames) == MOST_FRAMES:
                logger.info(
                    "video %d of env %s ends after %d frames, before its episode",
                    index,
                    self._env.spec.name,
                    MOST_FRAMES,
                )
                self._is_over[index] = True
            self._is_over[index] = self._is_over[index] or bool(row.is_last[index])

    @property
    def videos(self) -> list[np.ndarray]:
        """``[T, Y, X, 3]`` uint8 for each episode of which there are pictures."""
        return [video for _, video in self._made()]

    @property
    def captioned_videos(self) -> list[np.ndarray]:
        """:attr:`videos` with step and return so far below every picture."""
        return [captioned(video, self._returns[index]) for index, video in self._made()]

    def _made(self) -> Iterator[tuple[int, np.ndarray]]:
        for index, frames in enumerate(self._frames):
            if not frames:
                continue
            try:
                yield index, _to_bytes(np.stack(frames))
            except ValueError as error:
                self._frames[index] = []
                self._miss(f"no video of env {self._env.spec.name}: {error}")

    def _take(self, row: EnvStep, index: int) -> None:
        frames = self._frames[index]
        try:
            frame = (
                _observed(row.obs[self._image][index])
                if self._image
                else _rendered(self._env, index)
            )
            frames.append(_resized(frame, frames[0].shape) if frames else frame)
            before = self._returns[index][-1] if self._returns[index] else 0.0
            self._returns[index].append(before + float(row.reward[index]))
        except Exception as error:  # the edge of foreign renderer
            frames.clear()
            self._is_over[index] = True
            self._miss(
                f"no video of env {self._env.spec.name}: it cannot be drawn ({error_text(error)})"
            )

    def _miss(self, problem: str) -> None:
        logger.warning("%s", problem)
        self.problems.append(problem)


def captioned(video: np.ndarray, returns: Sequence[float]) -> np.ndarray:
    """A video with a line below every picture: its step, and the return so far. Small pictures are
    made larger by whole numbers, so that they can be seen and the line fits.

    Args:
        video: ``[T, Y, X, 3]`` uint8.
        returns: One per frame.
    """
    larger = max(1, int(CAPTION_WIDTH / video.shape[2] + 0.5))
    if larger > 1:
        video = video.repeat(larger, axis=1).repeat(larger, axis=2)
    count, height, width, channels = video.shape
    made = np.zeros((count, height + CAPTION_HEIGHT, width, channels), np.uint8)
    made[:, :height] = video
    for step, (picture, value) in enumerate(zip(made, returns, strict=True)):
        texts = (f"step {step}  return {value:.1f}", f"{step}  {value:.1f}", f"{value:.0f}")
        text = next((text for text in texts if text_size(text)[1] <= width), texts[-1])
        draw_text(picture, text, height + 2, (width - text_size(text)[1]) // 2)
    return made


def picture_of(env: VectorEnv, row: EnvStep, index: int = 0) -> np.ndarray:
    """One env's picture now, ``[Y, X, 3]`` uint8: the image that it observes, else what it renders.

    Raises:
        ConfigurationError: If it draws none; says why.
    """
    key = _image_key(env.spec)
    try:
        frame = _observed(row.obs[key][index]) if key else _rendered(env, index)
        return _to_bytes(frame)
    except Exception as error:  # the edge of foreign renderer
        raise ConfigurationError(
            f"env {env.spec.name} cannot be drawn ({error_text(error)})"
        ) from error


def save_videos(
    videos: Sequence[np.ndarray],
    folder: Path,
    label: str,
    problems: Sequence[str] = (),
    names: Sequence[str] = (),
) -> VideoReport:
    """Write videos as ``LABEL-0.mp4``, ... (``.gif`` where there is no ffmpeg).

    Args:
        videos: ``[T, Y, X, 3]`` uint8 each.
        folder: Where to.
        label: How their names begin.
        problems: Why others are missing already (of a :class:`Recorder`).
        names: What their names end with instead of numbers.

    Returns:
        What was written, and why not, the earlier problems first. A video is written whole or not
        at all.
    """
    from worldloom.evaluation.visualize import save_frames

    ending = "mp4" if importlib.util.find_spec("imageio_ffmpeg") else "gif"
    written = []
    missing = list(problems)
    for number, video in zip(names or range(len(videos)), videos, strict=True):
        try:
            path = inside(folder, f"{label}-{number}.{ending}")
            if video.ndim != 4 or video.shape[-1] != 3:  # ffmpeg would make something of it
                raise ValueError(f"frames must be [T, Y, X, 3], got {video.shape}")
            written.append(save_frames(video, path, fps=FRAMES_PER_S))
        except Exception as error:  # the edge of foreign encoder
            problem = f"video {label}-{number} could not be written: {error_text(error)}"
            logger.warning("%s", problem)
            missing.append(problem)
    return VideoReport(tuple(written), tuple(missing))


def _image_key(spec: EnvSpec) -> str | None:
    return next((key for key, array in spec.obs.items() if array.is_image), None)


def _observed(image: np.ndarray) -> np.ndarray:
    """The newest picture of an observed ``[Y, X, channels]`` image."""
    newest = image[..., -3:] if image.shape[-1] % 3 == 0 else image[..., -1:]
    return _small(newest)


def _rendered(env: VectorEnv, index: int) -> np.ndarray:
    """What an env draws, as ``[Y, X, 3]`` of any real dtype."""
    render: Any = getattr(env, "render", None)
    picture = None
    # what Gymnasium's Env raises for an env that draws nothing
    with contextlib.suppress(NotImplementedError):
        picture = render(index) if render is not None else None
    if isinstance(picture, list | tuple) and len(picture) and np.ndim(picture[-1]) >= 2:
        picture = picture[-1]  # render_mode "rgb_array_list": all since the last call
    if picture is None or (isinstance(picture, list | tuple) and not len(picture)):
        raise ValueError("it renders nothing; give it render_mode='rgb_array'")
    array = np.asarray(picture)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it renders {type(picture).__name__}; give it render_mode='rgb_array'")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise ValueError(f"a picture must be [Y, X] or [Y, X, channels], got {array.shape}")
    layout = find_image_layout(array.shape)
    if array.shape[-1] not in (1, 2, *COLOURS) and layout is not None:
        array = layout(array)
    channels = array.shape[-1]
    if channels not in (1, 2, *COLOURS):
        raise ValueError(f"a picture must have 1 to 4 channels, got {channels} in {array.shape}")
    return _small(array[..., :3] if channels in COLOURS else array[..., :1])


def _small(picture: np.ndarray) -> np.ndarray:
    """A copy, because many envs draw on one canvas: ``[Y, X, 3]``, at most ``LARGEST_SIDE`` wide
    and high.
    """
    step = -(-max(picture.shape[:2]) // LARGEST_SIDE)
    small = picture[::step, ::step]
    return np.repeat(small, 3, axis=-1) if small.shape[-1] == 1 else np.array(small)


def _to_bytes(video: np.ndarray) -> np.ndarray:
    """A video of any real dtype as uint8; floats mean [0, 1] if no frame of the video holds more,
    else [0, 255].
    """
    if video.dtype == np.uint8:
        return video
    if video.dtype == bool:
        return video.astype(np.uint8) * np.uint8(255)
    low = video.min()
    high = video.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"its pictures hold numbers from {low:g} to {high:g}; draw uint8 from 0 "
            "to 255, or floats from 0 to 1"
        )
    scale = 255 if video.dtype.kind == "f" and high <= 1 else 1
    result: np.ndarray = np.rint(video * scale).astype(np.uint8)
    return result


def _resized(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[Y, X, 3] as ``shape``, by the nearest pixel; the same picture when it has that shape."""
    if picture.shape == shape:
        return picture
    down, right = (
        np.arange(size) * own // size
        for own, size in zip(picture.shape[:2], shape[:2], strict=True)
    )
    resized: np.ndarray = picture[down][:, right]
    return resized
