"""From a dictionary of observations to a latent.

All vectors are concatenated and go through one MLP; each image goes through its own convolutions.
Every branch ends in pre-activations of the latent, which are summed before the one SimNorm: with a
single branch this is exactly the authors' encoder, and with several it is a product of experts
inside each group. Images of another size than 64 x 64 are resized. Shape legend: R rows, C
channels, Y height, X width, L latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.nn.normed import Linear, NormedLinear, simnorm
from worldloom.nn.shift_crop import channel_axis, resize, shift_crop

__all__ = ["IMAGE_SIZE", "Encoder", "ImageBranch", "MLPEncoder"]

IMAGE_SIZE = 64
FEATURE_SIDE = 4
"""Height and width after the four convolutions: 64 -> 29 -> 13 -> 6 -> 4."""


class MLPEncoder(nn.Sequential):
    """Vector branch: NormedLinear layers; the last one stops before SimNorm, which :class:`Encoder`
    applies.
    """

    def __init__(self, inputs: int, architecture: Architecture) -> None:
        hidden = (architecture.encoder_dim,) * max(architecture.encoder_layers - 1, 1)
        sizes = (inputs, *hidden, architecture.latent_dim)
        super().__init__(*(NormedLinear(i, o) for i, o in itertools.pairwise(sizes)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; inputs must have it too."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        """[R, I] -> [R, L] pre-activations."""
        *hidden, last = self
        for layer in hidden:
            x = layer(x)
        pre = F.linear(x, last.weight, last.bias)  # type: ignore[arg-type]
        return last.ln(pre)  # type: ignore[operator, no-any-return]


class ImageBranch(nn.Module):
    """Four convolutions on one image key; projected only when their output does not have the size
    of the latent.

    Args:
        shape: Shape of the image, HWC or CHW.
        architecture: Sizes.
    """

    def __init__(self, shape: tuple[int, ...], architecture: Architecture) -> None:
        super().__init__()
        self.channel_axis = channel_axis(shape)
        width = architecture.num_channels
        plan = ((shape[self.channel_axis], 7, 2), (width, 5, 2), (width, 3, 2), (width, 3, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(i, width, kernel, stride) for i, kernel, stride in plan
        )
        features = width * FEATURE_SIDE**2
        latent = architecture.latent_dim
        self.project = None if features == latent else Linear(features, latent)
        self.project_ln = None if features == latent else nn.LayerNorm(latent)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """PyTorch's default law for convolutions: U(-1, 1) / sqrt(fan in)."""
        for conv in self.convs:
            weight, *_ = parameters = list(conv.parameters())
            bound = 1.0 / math.sqrt(weight[0].numel())
            for parameter in parameters:
                parameter.uniform_(-bound, bound, generator=generator)
        if self.project is not None and self.project_ln is not None:
            self.project.reset_parameters(generator)
            self.project_ln.reset_parameters()

    def forward(self, images: Tensor, shift: Tensor | None) -> Tensor:
        """[R, ...] uint8 images and their shifts [R, 2] (None leaves them in place) -> [R, L]
        pre-activations.
        """
        x = images if self.channel_axis == 0 else images.movedim(-1, 1)
        x = resize(x, IMAGE_SIZE)
        if shift is not None:
            x = shift_crop(x, shift)
        x = x.to(next(self.parameters()).dtype) / 255.0 - 0.5
        *inner, last = self.convs
        for conv in inner:
            x = F.relu(conv(x))
        features: Tensor = last(x).flatten(1)
        if self.project is not None and self.project_ln is not None:
            features = self.project_ln(self.project(features))
        return features


class Encoder(nn.Module):
    """All branches of an observation and the SimNorm that joins them.

    Args:
        architecture: Sizes; ``architecture.obs`` decides which branches exist.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        inputs = architecture.vector_dim + architecture.task_dim
        self.state = MLPEncoder(inputs, architecture) if architecture.vector_keys else None
        self.images = nn.ModuleList(
            ImageBranch(architecture.obs[k].shape, architecture) for k in architecture.image_keys
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters."""
        for layer in [*(self.state or ()), *self.images]:
            layer.reset_parameters(generator)

    def forward(
        self, obs: Mapping[str, Tensor], task: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Latents of a batch.

        Args:
            obs: Per key [..., *shape]; equal leading axes.
            task: Task embeddings that broadcast to [..., D], or None.
            shift: [..., number of image keys, 2] shifts, or None.

        Returns:
            [..., L]; each group of ``simnorm_dim`` entries sums to 1.
        """
        a = self.architecture
        spec = next(iter(a.obs.values()))
        lead = next(iter(obs.values())).shape
        lead = lead[: len(lead) - len(spec.shape)]
        total: Tensor | None = None
        if self.state is not None:
            dtype = self.state.dtype
            parts = [obs[key].reshape(*lead, a.obs[key].size).to(dtype) for key in a.vector_keys]
            if task is not None:
                parts.append(task.expand(*lead, a.task_dim))
            total = self.state(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        for index, (key, branch) in enumerate(zip(a.image_keys, self.images, strict=True)):
            flat = None if shift is None else shift[..., index, :].reshape(-1, 2)
            logits = branch(obs[key].reshape(-1, *a.obs[key].shape), flat).view(*lead, a.latent_dim)
            total = logits if total is None else total + logits
        assert total is not None  # Architecture refuses an empty obs
        return simnorm(total, a.simnorm_dim)
