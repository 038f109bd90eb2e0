"""Names of DreamerV3's parts as 0.1 had them; constructor arguments are those of the parts that
they are.
"""

from worldloom.algorithms.dreamerv3.decoder import Decoder as MLPDecoder
from worldloom.algorithms.dreamerv3.decoder import ImageDecoder as CNNDecoder
from worldloom.algorithms.dreamerv3.encoder import ConvTower as CNNEncoder
from worldloom.algorithms.dreamerv3.encoder import Encoder as MLPEncoder
from worldloom.algorithms.dreamerv3.heads import Head as ContinueHead
from worldloom.algorithms.dreamerv3.heads import Head as RewardHead

__all__ = ["CNNDecoder", "CNNEncoder", "ContinueHead", "MLPDecoder", "MLPEncoder", "RewardHead"]
