"""What lived elsewhere is found there still, and is the same object."""

import dataclasses
import importlib

import pytest

from worldloom.algorithms.dreamerv3 import config as dreamer_sizes
from worldloom.algorithms.dreamerv3.spec import DreamerAgentConfig, DreamerV3AgentConfig
from worldloom.algorithms.tdmpc2 import config as tdmpc2_sizes
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig

FORMER = {
    "worldloom.agents.registry:make_agent": "worldloom.algorithms.registry",
    "worldloom.agents.dreamerv3.agent:DreamerV3Agent": "worldloom.algorithms.dreamerv3.agent",
    "worldloom.agents.dreamerv3.spec:PRESETS": "worldloom.algorithms.dreamerv3.spec",
    "worldloom.agents.tdmpc2.agent:TDMPC2Agent": "worldloom.algorithms.tdmpc2.agent",
    "worldloom.agents.tdmpc2.spec:resolve": "worldloom.algorithms.tdmpc2.spec",
    "worldloom.core.config:DreamerV3Config": "worldloom.algorithms.dreamerv3.config",
    "worldloom.core.config:WorldModelConfig": "worldloom.core.config_base",
    "worldloom.core.registry:WorldModelRegistry": "worldloom.algorithms.model_registry",
    "worldloom.models.base:BaseWorldModel": "worldloom.algorithms.base",
    "worldloom.models.dreamer:RSSM": "worldloom.algorithms.dreamerv3.rssm",
    "worldloom.models.dreamer.world_model:DreamerV3WorldModel": (
        "worldloom.algorithms.dreamerv3.world_model"
    ),
    "worldloom.models.dreamer.world_model:WorldModel": "worldloom.algorithms.dreamerv3.model",
    "worldloom.models.mlp:plan": "worldloom.algorithms.mlp.planning",
    "worldloom.models.mlp.planning:plan": "worldloom.algorithms.mlp.planning",
    "worldloom.models.mlp.world_model:MLPWorldModel": "worldloom.algorithms.mlp.world_model",
    "worldloom.models.public.dreamerv3:DreamerV3WorldModel": (
        "worldloom.algorithms.dreamerv3.world_model"
    ),
    "worldloom.models.public.tdmpc2:TDMPC2WorldModel": "worldloom.algorithms.tdmpc2.world_model",
    "worldloom.models.tdmpc2.official:load_official": "worldloom.algorithms.tdmpc2.official",
    "worldloom.models.tdmpc2.world_model:TDMPC2Networks": "worldloom.algorithms.tdmpc2.networks",
    "worldloom.models.tdmpc2.world_model:TDMPC2WorldModel": (
        "worldloom.algorithms.tdmpc2.world_model"
    ),
}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_the_same_object(former: str) -> None:
    module, _, name = former.partition(":")
    found = importlib.import_module(module)
    assert getattr(found, name) is getattr(importlib.import_module(FORMER[former]), name)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_the_agent_s_settings_of_dreamer_are_found_under_both_names() -> None:
    module = importlib.import_module("worldloom.agents.dreamerv3.spec")
    assert module.DreamerV3Config is module.DreamerV3AgentConfig is DreamerV3AgentConfig


@pytest.mark.parametrize(
    ("classes", "follows"),
    [
        (
            (
                *(dreamer_sizes.DreamerConstants, dreamer_sizes.LatentSizes),
                *(dreamer_sizes.DreamerSizes, dreamer_sizes.DreamerV3Config),
                *(DreamerAgentConfig, DreamerV3AgentConfig),
            ),
            {"units", "blocks", "space_blocks"},
        ),
        (
            (
                *(tdmpc2_sizes.TDMPC2Constants, tdmpc2_sizes.TDMPC2Planning),
                *(tdmpc2_sizes.TDMPC2Sizes, tdmpc2_sizes.TDMPC2Config, TDMPC2AgentConfig),
            ),
            {"latent_dim", "encoder_dim", "episodic", "task_dim"},
        ),
    ],
    ids=["dreamerv3", "tdmpc2"],
)
def test_a_setting_is_declared_once(classes: tuple[type, ...], follows: set[str]) -> None:
    """``follows``: of another kind in the public settings, where None or a size of the base class
    stands for "as the others say".
    """
    own = [name for kind in classes for name in kind.__annotations__ if name != "BOUNDS"]
    assert {name for name in own if own.count(name) > 1} == follows
    assert all(dataclasses.is_dataclass(kind) for kind in classes)
