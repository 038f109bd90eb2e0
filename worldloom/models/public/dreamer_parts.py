"""Names of DreamerV3's parts as 0.1 had them; constructor arguments are those of the parts that
they are.
"""

from worldloom.models.dreamer.decoder import Decoder as MLPDecoder
from worldloom.models.dreamer.decoder import ImageDecoder as CNNDecoder
from worldloom.models.dreamer.encoder import ConvTower as CNNEncoder
from worldloom.models.dreamer.encoder import Encoder as MLPEncoder
from worldloom.models.dreamer.heads import Head as ContinueHead
from worldloom.models.dreamer.heads import Head as RewardHead

__all__ = ["CNNDecoder", "CNNEncoder", "ContinueHead", "MLPDecoder", "MLPEncoder", "RewardHead"]
