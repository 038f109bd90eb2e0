"""How observations and actions become network inputs: which keys are images, which vectors, and
where each one goes.

Images may be HWC or CHW, of any size from 32 up and not square. They are laid on one canvas whose
sides are multiples of 16 (zero padding at bottom and right; sides above 256 are first averaged
down), so that four halvings always work. At the official sizes (64, 96) nothing is padded. No
network is in this file. Legend: N rows, H/W canvas sides, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec
from worldloom.nn.functional import symlog
from worldloom.nn.shift_crop import channel_axis

__all__ = [
    "ActionKey",
    "ActionLayout",
    "ImageKey",
    "ObsLayout",
    "VectorKey",
    "missing",
    "one_hot_groups",
]

STRIDE = 16
MIN_SIDE = 32
MAX_SIDE = 256


@dataclass(frozen=True, slots=True)
class ImageKey:
    """One image observation; ``height`` and ``width`` are after averaging down by ``shrink``."""

    name: str
    channels_first: bool
    height: int
    width: int
    channels: int
    shrink: int

    @classmethod
    def from_spec(cls, name: str, spec: ArraySpec) -> ImageKey:
        """Find the channel axis (the smaller of first and last) and check the size."""
        first = channel_axis(spec.shape) == 0
        height, width, channels = (*spec.shape[1:], spec.shape[0]) if first else spec.shape
        if min(height, width) < MIN_SIDE:
            raise ConfigurationError(
                f"image observation {name!r} has size {height}x{width}; both sides "
                f"must be >= {MIN_SIDE}: set the env's image_size"
            )
        shrink = -(-max(height, width) // MAX_SIDE)
        return cls(name, first, -(-height // shrink), -(-width // shrink), channels, shrink)

    def pixels(self, image: Tensor) -> Tensor:
        """Raw uint8 ``[N, ...]`` to float channels-first ``[N, C, height, width]`` in [0, 1]."""
        image = image if self.channels_first else image.movedim(-1, 1)
        pixels = image / 255
        return (
            functional.avg_pool2d(pixels, self.shrink, ceil_mode=True)
            if self.shrink > 1
            else pixels
        )


@dataclass(frozen=True, slots=True)
class VectorKey:
    """One vector observation: ``size`` numbers, or one-hot codes of ``classes`` when it is
    discrete.
    """

    name: str
    size: int
    classes: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Width of its encoding."""
        return sum(self.classes) if self.classes else self.size

    def encode(self, value: Tensor) -> Tensor:
        """Raw ``[N, ...]`` to ``[N, width]``: symlog of numbers, one-hot of classes, zeros where
        the key is missing.
        """
        flat = value.reshape(value.shape[0], -1)
        codes = one_hot_groups(flat, self.classes) if self.classes else symlog(flat.float())
        return codes.masked_fill(missing(flat).unsqueeze(-1), 0.0)


@dataclass(frozen=True, slots=True)
class ObsLayout:
    """All observation keys, sorted by name within images and vectors."""

    images: tuple[ImageKey, ...]
    vectors: tuple[VectorKey, ...]

    @classmethod
    def from_specs(cls, specs: Mapping[str, ArraySpec]) -> ObsLayout:
        """Sort observation keys into images and vectors; keys of size 0 are ignored."""
        names = sorted(name for name, spec in specs.items() if spec.size)
        images = tuple(ImageKey.from_spec(n, specs[n]) for n in names if specs[n].is_image)
        vectors = tuple(
            VectorKey(n, specs[n].size, specs[n].num_classes)
            for n in names
            if not specs[n].is_image
        )
        if not names:
            raise ConfigurationError(
                "observations are empty; an agent needs at least one image or vector key"
            )
        return cls(images, vectors)

    @property
    def names(self) -> list[str]:
        """Every key that is used."""
        return [key.name for key in self.images] + [key.name for key in self.vectors]

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas that holds every image; (0, 0) without images."""
        if not self.images:
            return 0, 0
        height = max(k.height for k in self.images)
        width = max(k.width for k in self.images)
        return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE

    @property
    def is_plain_image(self) -> bool:
        """True for a single image that fills the canvas as it is."""
        return (
            len(self.images) == 1
            and self.images[0].shrink == 1
            and self.canvas == (self.images[0].height, self.images[0].width)
        )

    @property
    def channels(self) -> int:
        """Channels of all images together."""
        return sum(key.channels for key in self.images)

    @property
    def vector_width(self) -> int:
        """Width of all encoded vectors together."""
        return sum(key.width for key in self.vectors)

    def vector(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Encoded vectors side by side. [N, vector_width]."""
        return torch.cat([key.encode(obs[key.name]) for key in self.vectors], -1)

    def image(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Images on the canvas, shifted to [-0.5, 0.5]. [N, C, H, W], channels last in memory."""
        height, width = self.canvas
        parts = []
        for key in self.images:
            pixels = key.pixels(obs[key.name]).sub_(0.5)
            if (key.height, key.width) != (height, width):
                pixels = functional.pad(pixels, (0, width - key.width, 0, height - key.height))
            parts.append(pixels)
        joint = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return joint.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class ActionKey:
    """One action key; ``classes`` is empty for a continuous one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Width of its encoding."""
        size = 1
        for side in self.shape:
            size *= side
        return sum(self.classes) if self.classes else size

    def encode(self, value: Tensor) -> Tensor:
        """Raw ``[N, ...]`` to ``[N, width]``: classes to one-hot, numbers as they are, zeros where
        the key is missing.
        """
        flat = value.reshape(value.shape[0], -1)
        codes = one_hot_groups(flat, self.classes) if self.classes else flat.float()
        return codes.masked_fill(missing(flat).unsqueeze(-1), 0.0)


@dataclass(frozen=True, slots=True)
class ActionLayout:
    """All action keys, sorted by name."""

    keys: tuple[ActionKey, ...]

    @classmethod
    def from_specs(cls, specs: Mapping[str, ArraySpec]) -> ActionLayout:
        """Read the action space."""
        keys = tuple(
            ActionKey(n, s.shape, s.dtype, s.num_classes) for n, s in sorted(specs.items())
        )
        if not keys or any(not key.width for key in keys):
            raise ConfigurationError(
                "the action space is empty; an agent needs at least one action of size >= 1"
            )
        return cls(keys)

    @property
    def width(self) -> int:
        """Width of all encoded actions together (A)."""
        return sum(key.width for key in self.keys)

    def encode(self, action: Mapping[str, Tensor]) -> Tensor:
        """Encoded actions side by side. [N, A]."""
        parts = [key.encode(action[key.name]) for key in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def to_env(self, encoded: Tensor) -> dict[str, Tensor]:
        """Encoded actions [N, A] as envs take them, in tensors: classes as int32, numbers clipped
        to [-1, 1].
        """
        found = {}
        parts = torch.split(encoded, [key.width for key in self.keys], -1)
        for key, part in zip(self.keys, parts, strict=True):
            if key.classes:
                codes = torch.split(part, list(key.classes), -1)
                value = torch.stack([code.argmax(-1) for code in codes], -1).to(torch.int32)
            else:
                value = part.clamp(-1.0, 1.0)
            found[key.name] = value.reshape(-1, *key.shape)
        return found


def missing(flat: Tensor) -> Tensor:
    """Where a key has no value: any of its numbers is -inf, or any of its signed integers -1. [N,
    k] -> [N] bool.
    """
    if not flat.is_signed():  # floats are signed, images' and flags' integers are not
        return torch.zeros(flat.shape[0], dtype=torch.bool, device=flat.device)
    return (flat == (float("-inf") if flat.is_floating_point() else -1)).any(-1)


def one_hot_groups(index: Tensor, classes: tuple[int, ...]) -> Tensor:
    """[..., k] integer components to [..., sum(classes)] float32 codes side by side; an index out
    of range codes as zeros.
    """
    parts = [
        index[..., i, None] == torch.arange(c, device=index.device) for i, c in enumerate(classes)
    ]
    return torch.cat(parts, -1).float()
