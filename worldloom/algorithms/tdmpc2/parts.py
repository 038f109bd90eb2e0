"""Names of TD-MPC2's parts as 0.1 had them; constructor arguments are those of the parts that they
are.
"""

from worldloom.algorithms.tdmpc2.encoder import MLPEncoder
from worldloom.nn import normed
from worldloom.nn.ensemble import EnsembleMLP as QEnsemble

Dynamics = PolicyHead = QNetwork = RewardHead = normed.MLP

__all__ = ["Dynamics", "MLPEncoder", "PolicyHead", "QEnsemble", "QNetwork", "RewardHead"]
