"""Latent spaces as small helpers: how raw network outputs become samples, and how far two of them
are apart.

These are for building models of one's own. The world models here do not train with them: DreamerV3
applies its free nats to the sum over categoricals, while
:meth:`CategoricalLatentSpace.kl_divergence` applies them to each one. Legend: D dimensions, S
categoricals, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CategoricalLatentSpace", "GaussianLatentSpace", "LatentSpace", "SimNormLatentSpace"]


class LatentSpace(ABC):
    """What every latent space can do."""

    @property
    @abstractmethod
    def param_dim(self) -> int:
        """Width of the raw parameters."""

    @property
    @abstractmethod
    def sample_dim(self) -> int:
        """Width of a flattened sample."""

    @abstractmethod
    def sample(self, params: Tensor, deterministic: bool = False) -> Tensor:
        """A sample of ``sample_dim`` numbers, or the most likely value, with gradient to ``params``
        ``[..., param_dim]``.
        """

    @abstractmethod
    def kl_divergence(self, posterior: Tensor, prior: Tensor, free_nats: float = 0.0) -> Tensor:
        """Divergence ``[...]`` summed over variables; each one counts what exceeds
        ``free_nats``.
        """


class GaussianLatentSpace(LatentSpace):
    """Diagonal Gaussian; parameters are the mean and a raw standard deviation, squashed into
    (min_std, max_std).

    Args:
        dim: D.
        min_std: Lower end of the standard deviation.
        max_std: Upper end of it.
    """

    def __init__(self, dim: int, min_std: float = 0.1, max_std: float = 2.0) -> None:
        self.dim = dim
        self.min_std = min_std
        self.max_std = max_std

    @property
    def param_dim(self) -> int:
        """2 D."""
        return 2 * self.dim

    @property
    def sample_dim(self) -> int:
        """D."""
        return self.dim

    def distribution(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, ``[..., D]`` each."""
        mean, raw = params.chunk(2, -1)
        return mean, self.min_std + (self.max_std - self.min_std) * torch.sigmoid(raw)

    def sample(self, params: Tensor, deterministic: bool = False) -> Tensor:
        """See :class:`LatentSpace`."""
        mean, std = self.distribution(params)
        return mean if deterministic else mean + std * torch.randn_like(std)

    def kl_divergence(self, posterior: Tensor, prior: Tensor, free_nats: float = 0.0) -> Tensor:
        """See :class:`LatentSpace`."""
        (mean, std), (other, width) = self.distribution(posterior), self.distribution(prior)
        kl = (
            (width / std).log()
            + (std.square() + (mean - other).square()) / (2 * width.square())
            - 0.5
        )
        return (kl - free_nats).clamp(min=0.0).sum(-1) if free_nats else kl.sum(-1)


class CategoricalLatentSpace(LatentSpace):
    """S independent one-hot variables of C classes, sampled with Gumbel noise.

    Args:
        num_categoricals: S.
        num_classes: C.
        temperature: Of the relaxation.
        straight_through: Hard samples with the gradient of the soft ones.
    """

    def __init__(
        self,
        num_categoricals: int = 32,
        num_classes: int = 32,
        temperature: float = 1.0,
        straight_through: bool = True,
    ) -> None:
        self.num_categoricals = num_categoricals
        self.num_classes = num_classes
        self.temperature = temperature
        self.straight_through = straight_through

    @property
    def param_dim(self) -> int:
        """S C."""
        return self.num_categoricals * self.num_classes

    @property
    def sample_dim(self) -> int:
        """S C."""
        return self.param_dim

    def _grid(self, params: Tensor) -> Tensor:
        """[..., S C] or [..., S, C] -> [..., S, C]."""
        is_flat = params.shape[-1] == self.param_dim
        return (
            params.reshape(*params.shape[:-1], self.num_categoricals, self.num_classes)
            if is_flat
            else params
        )

    def sample(self, params: Tensor, deterministic: bool = False) -> Tensor:
        """One-hot codes ``[..., S, C]`` of logits ``[..., S C]`` or ``[..., S, C]``."""
        logits = self._grid(params)
        if deterministic:
            soft = logits.softmax(-1)
            value = F.one_hot(logits.argmax(-1), self.num_classes).to(soft) + soft - soft.detach()
        else:
            value = F.gumbel_softmax(logits, self.temperature, hard=self.straight_through)
        return value

    def kl_divergence(self, posterior: Tensor, prior: Tensor, free_nats: float = 0.0) -> Tensor:
        """See :class:`LatentSpace`."""
        log_p = self._grid(posterior).log_softmax(-1)
        log_q = self._grid(prior).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (kl - free_nats).clamp(min=0.0).sum(-1) if free_nats else kl.sum(-1)


class SimNormLatentSpace(LatentSpace):
    """Groups of ``simnorm_dim`` entries, each on a simplex (TD-MPC2, arXiv:2310.16828v2, Eq. 5).

    Args:
        dim: D.
        simnorm_dim: Group size.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``simnorm_dim``.
    """

    def __init__(self, dim: int = 512, simnorm_dim: int = 8) -> None:
        if simnorm_dim < 1 or dim % simnorm_dim:
            raise ValueError(f"dim must be a multiple of simnorm_dim, got {dim} and {simnorm_dim}")
        self.dim = dim
        self.simnorm_dim = simnorm_dim

    @property
    def param_dim(self) -> int:
        """D."""
        return self.dim

    @property
    def sample_dim(self) -> int:
        """D."""
        return self.dim

    def _groups(self, params: Tensor) -> Tensor:
        """[..., D] -> [..., D / simnorm_dim, simnorm_dim]."""
        *lead, width = params.shape
        return params.reshape(*lead, width // self.simnorm_dim, self.simnorm_dim)

    def sample(self, params: Tensor, deterministic: bool = False) -> Tensor:
        """The simplices; there is no randomness."""
        return self._groups(params).softmax(-1).flatten(-2)

    def kl_divergence(self, posterior: Tensor, prior: Tensor, free_nats: float = 0.0) -> Tensor:
        """Zeros: the simplices are a deterministic code, so there is nothing between two
        distributions.
        """
        return torch.zeros(posterior.shape[:-1], device=posterior.device)
