"""Pictures of a LeRobot dataset as arrays: files of images inside Parquet (Pillow), and frames of
MP4 videos (the ffmpeg that imageio-ffmpeg brings).

What the dataset says of their size is compared with the picture before it is decoded. Frames are
taken as LeRobot's encoder left them: a video is lossy, so they are near what the camera saw.

Legend: Y, X sides of an image, C its channels, N rows.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError, MissingDependencyError
from worldloom.training.npz import check_expansion
from worldloom_dist.replay.formats.lerobot_layout import SCHEME, Feature, VideoPlace

__all__ = ["VideoFrames", "decode_picture", "encode_picture", "picture_shape"]

CHANNELS = {1: ("L", "gray", "pgm", b"P5"), 3: ("RGB", "rgb24", "ppm", b"P6")}
"""By the number of channels: Pillow's name for such images, ffmpeg's for the pixels and for a
format of one frame after the other, and how each frame begins in it.
"""

FORMATS = ("PNG", "JPEG")
"""Of images inside Parquet: others have decoders that start programs or open files."""


def picture_shape(source: Path, feature: Feature) -> tuple[int, int, int]:
    """``(Y, X, C)`` of a feature's pictures, whichever order its shape has.

    Raises:
        CheckpointError: If they are no pictures of one or three channels.
    """
    shape = feature.shape
    if len(shape) == 3:
        y, x, c = shape if shape[2] in CHANNELS else (shape[1], shape[2], shape[0])
        if c in CHANNELS and y and x:
            return y, x, c
    raise CheckpointError(
        f"{SCHEME}{source}: column {feature.name!r} holds pictures of shape {shape}; pictures of "
        "1 or 3 channels are read, so choose other columns with ?obs=COLUMN"
    )


def decode_picture(source: Path, feature: Feature, data: object) -> np.ndarray:
    """An image of a Parquet file as ``[Y, X, C]`` uint8.

    Raises:
        CheckpointError: If it has another size or other channels than the dataset says, or is
            damaged.
    """
    image_module = _pillow()
    y, x, c = picture_shape(source, feature)
    raw = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(raw, bytes):
        raise CheckpointError(
            f"{SCHEME}{source}: column {feature.name!r} has a row without the bytes of its image; "
            "write the dataset with its images inside"
        )
    try:
        opened = image_module.open(io.BytesIO(raw), formats=FORMATS)
    except image_module.UnidentifiedImageError as error:
        raise CheckpointError(
            f"{SCHEME}{source}: column {feature.name!r} has an image that is neither of "
            f"{' nor of '.join(FORMATS)}; write the dataset as LeRobot does"
        ) from error
    with opened as image:
        if image.size != (x, y) or image.mode != CHANNELS[c][0]:
            raise CheckpointError(
                f"{SCHEME}{source}: column {feature.name!r} has an image of {image.size[1]} x "
                f"{image.size[0]} ({image.mode}), and meta/info.json says {feature.shape}; mend "
                "the dataset"
            )
        return np.asarray(image, np.uint8).reshape(y, x, c)


def encode_picture(value: np.ndarray) -> bytes:
    """``[Y, X, C]`` uint8 as the bytes of a PNG file, from which it comes back unchanged."""
    image_module = _pillow()
    file = io.BytesIO()
    pixels = value[..., 0] if value.shape[-1] == 1 else value
    image_module.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    return file.getvalue()


class VideoFrames:
    """Frames of one feature's videos, episode after episode; a file stays open while its episodes
    follow each other.

    Args:
        source: Folder of the dataset, for messages.
        feature: Whose.
        fps: Frames per second.
    """

    def __init__(self, source: Path, feature: Feature, fps: float) -> None:
        self._source = source
        self._feature = feature
        self._fps = fps
        self._shape = picture_shape(source, feature)
        self._path: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._next = 0

    def read(self, place: VideoPlace, count: int) -> np.ndarray:
        """``[N, Y, X, C]`` frames of an episode.

        Raises:
            CheckpointError: If the video is missing or damaged, ends before the episode does, or
                has another size.
            MissingDependencyError: If imageio-ffmpeg is not installed.
        """
        y, x, c = self._shape
        check_expansion(place.path, count * y * x * c)
        start = round(place.start_s * self._fps)
        if place.path != self._path or start < self._next or self._process is None:
            self.close()
            self._open(place.path)
        frames: list[np.ndarray] = []
        while len(frames) < count:
            frame = self._frame()
            if frame is None:
                raise CheckpointError(
                    f"{place.path}: has {self._next} frames, and an episode needs those from "
                    f"{start} to {start + count - 1}; give the whole video"
                )
            if self._next > start:
                frames.append(frame)
        return np.stack(frames)

    def close(self) -> None:
        """Stop decoding."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _open(self, path: Path) -> None:
        _, pixels, codec, _ = CHANNELS[self._shape[2]]
        words = [
            *(_ffmpeg(), "-nostdin", "-loglevel", "quiet"),
            # an MP4 and nothing that names other files or addresses, as a playlist does
            *("-f", "mov", "-protocol_whitelist", "file", "-i", f"file:{path.resolve()}"),
            *("-map", "0:v:0", "-fps_mode", "passthrough", "-pix_fmt", pixels),
            *("-c:v", codec, "-f", "image2pipe", "-"),
        ]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._path, self._next = path, 0

    def _frame(self) -> np.ndarray | None:
        """The next frame; None after the last one."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout
        y, x, c = self._shape
        begin = CHANNELS[c][3] + f"\n{x} {y}\n255\n".encode()
        head = pipe.read(len(begin))
        if not head:
            return None
        if head != begin:
            found = head.split()[1:3]
            raise CheckpointError(
                f"{self._path}: has frames of {b' x '.join(found[::-1]).decode()}, and "
                f"meta/info.json says {self._feature.shape} for {self._feature.name!r}; mend the "
                "dataset"
            )
        data = pipe.read(y * x * c)
        if len(data) < y * x * c:
            return None
        self._next += 1
        return np.frombuffer(data, np.uint8).reshape(y, x, c)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("images of a LeRobot dataset", "pillow", "viz") from error
    return Image


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependencyError(
            "videos of a LeRobot dataset", "imageio-ffmpeg", "video"
        ) from error
    return str(imageio_ffmpeg.get_ffmpeg_exe())
