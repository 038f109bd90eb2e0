"""The kinds of latent states and of dynamics. No torch."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DynamicsType", "LatentType"]


class LatentType(StrEnum):
    """What a latent state is made of; members equal their lower-case names."""

    DETERMINISTIC = "deterministic"
    GAUSSIAN = "gaussian"
    CATEGORICAL = "categorical"
    VQ = "vq"
    SIMNORM = "simnorm"


class DynamicsType(StrEnum):
    """How a latent state is carried forward; members equal their lower-case names."""

    RSSM = "rssm"
    MLP = "mlp"
    TRANSFORMER = "transformer"
    SSM = "ssm"
