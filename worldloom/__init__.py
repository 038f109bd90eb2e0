"""Latent world models behind one interface. Importing this loads neither torch nor ray; a name
loads what it needs when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

if TYPE_CHECKING:
    from worldloom import training
    from worldloom.core.config import DreamerV3Config, MLPConfig, TDMPC2Config, WorldModelConfig
    from worldloom.core.latent_space import (
        CategoricalLatentSpace,
        GaussianLatentSpace,
        LatentSpace,
        SimNormLatentSpace,
    )
    from worldloom.core.registry import AutoConfig, AutoWorldModel, WorldModelRegistry
    from worldloom.core.state import DynamicsType, LatentState, LatentType
    from worldloom.core.trajectory import Trajectory
    from worldloom.core.world_model import WorldModel
    from worldloom.factory import (
        MODEL_ALIASES,
        MODEL_CATALOG,
        create_world_model,
        get_config,
        get_model_info,
        list_models,
    )
    from worldloom.models.mlp.world_model import MLPWorldModel
    from worldloom.models.public.dreamerv3 import DreamerV3WorldModel
    from worldloom.models.public.tdmpc2 import TDMPC2WorldModel

__version__ = "0.2.0"

__all__ = [
    "MODEL_ALIASES",
    "MODEL_CATALOG",
    "AutoConfig",
    "AutoWorldModel",
    "CategoricalLatentSpace",
    "DreamerV3Config",
    "DreamerV3WorldModel",
    "DynamicsType",
    "GaussianLatentSpace",
    "LatentSpace",
    "LatentState",
    "LatentType",
    "MLPConfig",
    "MLPWorldModel",
    "SimNormLatentSpace",
    "TDMPC2Config",
    "TDMPC2WorldModel",
    "Trajectory",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelRegistry",
    "__version__",
    "create_world_model",
    "get_config",
    "get_model_info",
    "list_models",
    "training",
]

_HOMES = {
    "core.config": ("DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"),
    "core.latent_space": (
        "CategoricalLatentSpace",
        "GaussianLatentSpace",
        "LatentSpace",
        "SimNormLatentSpace",
    ),
    "core.registry": ("AutoConfig", "AutoWorldModel", "WorldModelRegistry"),
    "core.state": ("LatentState",),
    "core.state_kinds": ("DynamicsType", "LatentType"),
    "core.trajectory": ("Trajectory",),
    "core.world_model": ("WorldModel",),
    "factory": (
        "MODEL_ALIASES",
        "MODEL_CATALOG",
        "create_world_model",
        "get_config",
        "get_model_info",
        "list_models",
    ),
    "models.mlp.world_model": ("MLPWorldModel",),
    "models.public.dreamerv3": ("DreamerV3WorldModel",),
    "models.public.tdmpc2": ("TDMPC2WorldModel",),
}
SUBPACKAGES = ("core", "data", "envs", "evaluation", "factory", "models", "nn", "training")


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES, SUBPACKAGES)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
