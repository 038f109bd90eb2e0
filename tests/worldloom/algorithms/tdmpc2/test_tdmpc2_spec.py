"""Settings follow the environment, and wrong ones are refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.worldloom.algorithms.tdmpc2.tiny import make_env
from worldloom.algorithms.registry import agent_spec, env_defaults, make_agent_config
from worldloom.algorithms.tdmpc2.spec import PRESETS, TDMPC2AgentConfig, resolve
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig


def config_of(preset: str, **changes: Any) -> TDMPC2AgentConfig:
    config = make_agent_config(f"tdmpc2:{preset}", changes)
    assert isinstance(config, TDMPC2AgentConfig)
    return config


def test_the_default_preset_is_the_published_size() -> None:
    assert make_agent_config("tdmpc2").name == "tdmpc2:5m"
    assert list(PRESETS) == ["ci", "1m", "5m", "19m", "48m", "317m"]


def test_official_settings_on_a_control_suite_task() -> None:
    spec = agent_spec(config_of("5m"), make_env(episode_limit=500))
    assert (spec.train_ratio, spec.prefill_agent_steps, spec.pretrain_updates) == (768, 2500, 2500)
    assert spec.acting == "planner"
    assert (spec.sampling.batch_size, spec.sampling.length, spec.sampling.bootstrap) == (256, 3, 1)
    assert env_defaults(config_of("5m"))["dmc"]["action_repeat"] == 2


@pytest.mark.parametrize(
    ("spelling", "settings"),
    [
        ("gym:HalfCheetah-v5", (0.99, 0.7)),
        ("mujoco:HalfCheetah-v5", (0.99, 0.7)),
        ("HalfCheetah-v5", (0.99, 0.7)),
        (" gym:HalfCheetah-v5", (0.99, 0.7)),
        ("dmc:cheetah-run", (0.995, 0.5)),
        ("toy:point", (0.995, 0.5)),
        ("rllib:cheetah", (0.995, 0.5)),
        ("my_envs:Cheetah", (0.995, 0.5)),
    ],
)
def test_settings_follow_the_task_and_not_its_spelling(
    spelling: str, settings: tuple[float, float]
) -> None:
    resolved = resolve(config_of("5m"), make_env(name=spelling, episode_limit=1000))
    assert (resolved.discount, resolved.rho) == settings


def test_env_settings_follow_the_task_and_not_its_spelling() -> None:
    published = env_defaults(config_of("5m"))
    spellings = ("HalfCheetah-v5", "gym:HalfCheetah-v5", "mujoco:HalfCheetah-v5")
    filled = [EnvConfig(env=env).with_defaults(published).settings() for env in spellings]
    assert filled[0] == filled[1] == filled[2] == dict(published["gym"])


def test_without_a_known_limit_the_discount_is_the_highest() -> None:
    resolved = resolve(config_of("5m"), make_env(episode_limit=None))
    assert (resolved.discount, resolved.prefill_agent_steps) == (0.995, 2500)
    assert resolve(config_of("5m", discount=0.9), make_env(episode_limit=None)).discount == 0.9


def test_many_action_components_get_two_more_iterations() -> None:
    assert resolve(config_of("5m"), make_env()).iterations == 6
    assert resolve(config_of("5m"), make_env(action={"action": ArraySpec((20,))})).iterations == 8


@pytest.mark.parametrize(
    ("asked", "may_terminate", "got"),
    [("auto", True, "on"), ("auto", False, "off"), ("off", True, "off")],
)
def test_termination_is_learned_where_it_can_happen(
    asked: str, may_terminate: bool, got: str
) -> None:
    assert (
        resolve(config_of("5m", episodic=asked), make_env(may_terminate=may_terminate)).episodic
        == got
    )


def test_discrete_actions_are_refused_with_the_way_out() -> None:
    env = make_env(action={"action": ArraySpec((), "int64", (4,))})
    with pytest.raises(ConfigurationError, match="use --agent dreamerv3"):
        agent_spec(config_of("5m"), env)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_dim", 30),
        ("num_q", 1),
        ("num_elites", 1000),
        ("num_policy_samples", 512),
        ("dropout", 1.0),
        ("batch_size", 0),
        ("discount", 1.5),
        ("episodic", "maybe"),
        ("temperature", 0.0),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=field):
        config_of("5m", **{field: value})


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigurationError, match=r"dropout.*num_q"):
        config_of("5m", num_q=1, dropout=2.0)


def test_the_spec_needs_no_torch() -> None:
    code = "import sys, worldloom.algorithms.tdmpc2.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
