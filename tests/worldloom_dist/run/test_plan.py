"""What is looked at before a run starts."""

from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from worldloom.envs.toy import PointEnv
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import Plan, agent_settings, resolve


class CountedEnv(PointEnv):
    metadata: ClassVar = {"render_modes": []}
    built = open = 0

    def __init__(self) -> None:
        super().__init__()
        CountedEnv.built += 1
        CountedEnv.open += 1

    def close(self) -> None:
        CountedEnv.open -= 1


class CountedImageEnv(CountedEnv):
    observation_space = gymnasium.spaces.Box(0, 255, (80, 80, 3), np.uint8)


def pair() -> Any:
    return SyncVectorEnv([CountedEnv, CountedEnv])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    gymnasium.register("CountedImage-v0", entry_point=f"{__name__}:CountedImageEnv")
    yield
    gymnasium.registry.pop("CountedImage-v0")


def plan_for(env: str, *words: str) -> Plan:
    CountedEnv.built = CountedEnv.open = 0
    plan = resolve(parse(["--preset", "debug", "--runtime", "local", "--env", env, *words]))
    assert CountedEnv.open == 0
    return plan


@pytest.mark.usefixtures("registered")
def test_env_is_built_once_to_be_looked_at_and_again_where_the_agents_settings_change_it() -> None:
    assert plan_for(f"{__name__}:CountedEnv").splits_envs
    assert CountedEnv.built == 1
    assert not plan_for(f"{__name__}:pair", "--envs-per-worker", "2").splits_envs
    assert CountedEnv.built == 2, "one vector env of two"
    plan = plan_for("gym:CountedImage-v0", "--agent", "tdmpc2:ci")
    assert plan.env_spec.obs["obs"].shape == (64, 64, 9)
    assert CountedEnv.built == 2


def test_an_agent_makes_the_latents_that_rows_from_files_lack(tmp_path) -> None:
    words = ["--env", "toy:point", "--agent", "dreamerv3:ci", "--replay.load", str(tmp_path / "a")]
    config = parse(words)
    assert agent_settings(config).burn_in
    assert not agent_settings(parse(words[:4])).burn_in
    assert not agent_settings(parse([*words, "--agent.burn-in", "False"])).burn_in
    other = parse(["--env", "toy:point", "--agent", "tdmpc2:ci", *words[4:]])
    assert not hasattr(agent_settings(other), "burn_in")
