"""R2-Dreamer's world model: DreamerV3's, whose latents learn to agree with the encoded observation
instead of decoding it.

A linear projector without a bias maps [deter, stoch] to the width of the encoder's tokens. The
tokens are a target without gradient: the encoder learns through the posterior. Legend: B batch, T
time, E token width.
"""

from __future__ import annotations

from torch import Tensor

from worldloom.algorithms.dreamerv3.model import LatentModel, ModelBatch
from worldloom.algorithms.dreamerv3.networks import Networks
from worldloom.algorithms.dreamerv3.rssm import Posterior
from worldloom.algorithms.r2dreamer.redundancy import barlow_losses, joint_rows
from worldloom.algorithms.r2dreamer.spec import R2DreamerAgentConfig
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.nn.dense import Linear

__all__ = ["R2DreamerModel", "R2DreamerNetworks"]


class R2DreamerModel(LatentModel):
    """Learns its representation by reducing the redundancy between latents and tokens."""

    sizes: R2DreamerAgentConfig
    ranks: ProcessGroup = SINGLE_PROCESS

    def add_representation(self, mlp_layers: int) -> None:
        """See :meth:`LatentModel.add_representation`: the projector."""
        self.projector = Linear(self.sizes.feature, self.enc.width, bias=False)

    def representation_losses(
        self, batch: ModelBatch, tokens: Tensor, posterior: Posterior
    ) -> dict[str, Tensor]:
        """``barlow/invariance`` and ``barlow/redundancy`` of the joint batch, 0-d, the latter
        weighted as in their sum; see :func:`barlow_losses`.
        """
        projected = self.projector(posterior.feature).flatten(0, 1).float()
        target = tokens.detach().flatten(0, 1).float()
        invariance, redundancy = barlow_losses(
            joint_rows(projected, self.ranks), joint_rows(target, self.ranks)
        )
        return {
            "barlow/invariance": invariance,
            "barlow/redundancy": self.sizes.redundancy_weight * redundancy,
        }


class R2DreamerNetworks(Networks):
    """DreamerV3's networks around an :class:`R2DreamerModel`."""

    kind_of_model = R2DreamerModel
