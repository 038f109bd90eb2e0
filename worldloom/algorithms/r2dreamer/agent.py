"""R2-Dreamer behind the protocols of ``worldloom.core.protocol``: DreamerV3's agent with another
world model. It acts as DreamerV3 does, and draws no predictions, which only a decoder could.
"""

from __future__ import annotations

from worldloom.algorithms.dreamerv3.agent import DreamerAgent, make_policy
from worldloom.algorithms.r2dreamer.model import R2DreamerModel, R2DreamerNetworks
from worldloom.algorithms.r2dreamer.spec import R2DreamerAgentConfig
from worldloom.core.process_group import ProcessGroup
from worldloom.core.specs import EnvSpec

__all__ = ["R2DreamerAgent", "make_agent", "make_policy"]


class R2DreamerAgent(DreamerAgent):
    """Trains and acts; see :class:`worldloom.core.protocol.Agent`.

    Args:
        config, env: As given to the registry.
        device: Where it lives.
        seed: Root of the initial weights and of every draw.
    """

    kind_of_networks = R2DreamerNetworks

    def join(self, ranks: ProcessGroup) -> None:
        """See :meth:`worldloom.core.protocol.Agent.join`; correlations are those of all ranks."""
        super().join(ranks)
        model = self.all_networks.model
        assert isinstance(model, R2DreamerModel)
        model.ranks = ranks


def make_agent(
    config: R2DreamerAgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
) -> R2DreamerAgent:
    """See :func:`worldloom.algorithms.registry.make_agent`."""
    return R2DreamerAgent(config, env, device=device, seed=seed)
