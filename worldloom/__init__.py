"""Latent world models behind one interface. Importing this loads neither torch nor ray; a name
loads what it needs when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldloom.core.lazy import load_lazily

if TYPE_CHECKING:
    from worldloom import training
    from worldloom.agent import Agent, load_agent
    from worldloom.algorithms.configs import (
        DreamerV3Config,
        MLPConfig,
        TDMPC2Config,
        WorldModelConfig,
    )
    from worldloom.algorithms.dreamerv3.world_model import DreamerV3WorldModel
    from worldloom.algorithms.mlp.world_model import MLPWorldModel
    from worldloom.algorithms.model_registry import AutoConfig, AutoWorldModel, WorldModelRegistry
    from worldloom.algorithms.tdmpc2.world_model import TDMPC2WorldModel
    from worldloom.core.latent_space import (
        CategoricalLatentSpace,
        GaussianLatentSpace,
        LatentSpace,
        SimNormLatentSpace,
    )
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

__version__ = "0.2.0"

__all__ = [
    "MODEL_ALIASES",
    "MODEL_CATALOG",
    "Agent",
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
    "load_agent",
    "training",
]

_HOMES = {
    "agent": ("Agent", "load_agent"),
    "algorithms.configs": ("DreamerV3Config", "MLPConfig", "TDMPC2Config", "WorldModelConfig"),
    "core.latent_space": (
        "CategoricalLatentSpace",
        "GaussianLatentSpace",
        "LatentSpace",
        "SimNormLatentSpace",
    ),
    "algorithms.model_registry": ("AutoConfig", "AutoWorldModel", "WorldModelRegistry"),
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
    "algorithms.mlp.world_model": ("MLPWorldModel",),
    "algorithms.dreamerv3.world_model": ("DreamerV3WorldModel",),
    "algorithms.tdmpc2.world_model": ("TDMPC2WorldModel",),
}


def __getattr__(name: str) -> Any:
    return load_lazily(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
