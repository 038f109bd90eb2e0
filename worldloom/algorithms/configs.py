"""Settings of the public world models, and which class a saved config has. No torch.

Unlike agents' settings these keep the documented names; each model's public face translates them
into the sizes of the networks.
"""

from __future__ import annotations

from worldloom.algorithms.dreamerv3.config import DreamerV3Config
from worldloom.algorithms.mlp.config import MLPConfig
from worldloom.algorithms.tdmpc2.config import TDMPC2Config
from worldloom.core.config_base import CONFIG_CLASSES, WorldModelConfig

__all__ = ["DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"]

CONFIG_CLASSES.update(
    base=WorldModelConfig, dreamer=DreamerV3Config, tdmpc2=TDMPC2Config, mlp=MLPConfig
)
CONFIG_CLASSES.update(dreamerv3=DreamerV3Config, tdmpc=TDMPC2Config)  # as some files say
