"""The published presets are the published runs, setting by setting, and what a user changes of a
preset is said.
"""

import dataclasses
import logging

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.announcing import announce
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.outcome import check_trains
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS, preset_changes

OFFICIAL = {
    "batch_size": 16,
    "batch_length": 64,
    "replay_context": 1,
    "report_length": 32,
    "imagine_length": 15,
    "horizon": 333,
    "learn_discount": True,
    "lam": 0.95,
    "entropy_scale": 3e-4,
    "slow_scale": 1.0,
    "slow_rate": 0.02,
    "slow_target": False,
    "return_rate": 0.01,
    "return_limit": 1.0,
    "return_low": 0.05,
    "return_high": 0.95,
    "free_nats": 1.0,
    "scale_obs": 1.0,
    "scale_rew": 1.0,
    "scale_con": 1.0,
    "scale_dyn": 1.0,
    "scale_rep": 0.1,
    "scale_policy": 1.0,
    "scale_value": 1.0,
    "scale_repval": 0.3,
    "lr": 4e-5,
    "warmup": 1000,
    "agc": 0.3,
    "pmin": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-20,
    "weight_decay": 0.0,
    "unimix": 0.01,
    "bins": 255,
    "stoch": 32,
    "blocks": 8,
    "space_blocks": 8,
    "actor_layers": 3,
    "critic_layers": 3,
    "precision": "default",
}
"""Settings of the official code that all its runs share; its precision is bfloat16, as ``default``
is on CUDA.
"""
SIZES = {
    "size1m": {"deter": 512, "hidden": 64, "classes": 4, "depth": 4, "units": 64},
    "size200m": {"deter": 8192, "hidden": 1024, "classes": 64, "depth": 64, "units": 1024},
}
RUNS = {
    "dmc-proprio": {
        "size": "size1m",
        "ratio": 1024.0,
        "agent_steps": 1_100_000,
        "envs": 16,
        "repeat": 1,
    },
    "atari100k": {
        "size": "size200m",
        "ratio": 256.0,
        "agent_steps": 110_000,
        "envs": 1,
        "repeat": 4,
    },
}


@pytest.mark.parametrize("preset", RUNS)
def test_published_presets_train_with_every_official_setting(preset):
    plan = resolve(parse(["--preset", preset]))
    run = RUNS[preset]
    found = dataclasses.asdict(plan.agent)
    # the ratio of the run is the plan's, below
    own = {"name": f"dreamerv3:{run['size']}", "train_ratio": 32.0, "burn_in": False}
    assert found == OFFICIAL | SIZES[run["size"]] | own
    assert plan.spec.train_ratio == plan.limits.train_ratio == run["ratio"]
    assert plan.target_agent_steps == run["agent_steps"]
    assert (plan.config.num_envs, plan.env_spec.action_repeat) == (run["envs"], run["repeat"])
    assert plan.spec.prefill_agent_steps == 1024 + 64
    assert not plan.spec.random_prefill
    assert not plan.config.agent_overrides
    assert plan.config.replay.capacity_steps > run["agent_steps"], (
        "no row is evicted that the published buffer would keep"
    )
    assert plan.config.learner.weights_dtype == "float32"


def test_atari100k_sees_and_acts_as_published():
    env = resolve(parse(["--preset", "atari100k"])).env
    assert (env.image_size, env.grayscale, env.frame_stack, env.noops, env.time_limit) == (
        64,
        False,
        1,
        30,
        27_000,
    )
    assert (env.sticky, env.full_actions, env.action_repeat) == (0.0, False, 4)


def test_dmc_proprio_sees_numbers_only():
    plan = resolve(parse(["--preset", "dmc-proprio"]))
    assert {name: spec.shape for name, spec in plan.env_spec.obs.items()} == {
        "height": (),
        "orientations": (14,),
        "velocity": (9,),
    }
    assert plan.env_spec.episode_limit == 1000


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_as_it_is_has_no_changes(preset, tmp_path):
    assert preset_changes(parse(["--preset", preset, "--run-dir", str(tmp_path)])) == []


def test_every_change_of_a_preset_is_said(caplog, tmp_path):
    words = (
        "--preset dmc-proprio --env dmc:reacher-easy --agent.lr 1e-4 --train-ratio 512 "
        "--replay.shards 1 --env.time-limit 500"
    )
    plan = resolve(parse(words.split()))
    assert preset_changes(plan.config) == [
        "env dmc:walker-walk -> dmc:reacher-easy",
        "env.time_limit default -> 500",
        "train_ratio 1024.0 -> 512.0",
        "replay.shards 2 -> 1",
        "agent.lr default -> 0.0001",
    ]
    with caplog.at_level(logging.INFO):
        announce(plan, RunFolder(tmp_path), 0, is_resumed=False)
    assert "dmc-proprio, changed: env dmc:walker-walk -> dmc:reacher-easy; " in caplog.text


def test_a_plan_knows_the_env_steps_that_pay_for_so_many_trained_positions():
    plan = resolve(parse(["--preset", "atari100k"]))
    assert plan.env_steps_at(0) == 1088 * 4
    assert plan.env_steps_at(256 * 100) == (1088 + 100) * 4


def test_presets_stack_and_the_later_one_wins():
    config = parse("--preset atari100k+debug".split())
    assert config.preset == "atari100k+debug"
    assert (config.agent, config.env.env) == ("tdmpc2:ci", "toy:point")
    assert config.replay.capacity_steps == 10_000
    other = parse("--preset quick+dmc-proprio --workers 3".split())
    assert (other.agent, other.env_steps, other.workers) == ("dreamerv3:size1m", 1_100_000, 3)
    assert other.eval_episodes == PRESETS["quick"]().eval_episodes, "dmc-proprio does not set it"
    assert preset_changes(other) == ["workers 16 -> 3"]
    with pytest.raises(ConfigurationError, match=r"no preset named 'quik'; did you mean quick\?"):
        parse("--preset atari100k+quik".split())


@pytest.mark.parametrize(
    ("words", "steps", "every", "rows"),
    [
        ("--env gym:HalfCheetah-v5 --agent tdmpc2:5m", 1_000_000, 50_000, 1_000_000),
        ("--env dmc:cartpole-swingup --agent tdmpc2:1m", 4_000_000, 50_000, 1_000_000),
        ("--env dmc:cartpole-swingup --agent dreamerv3:size1m", 1_100_000, 50_000, 1_000_000),
        ("--env atari:pong --agent dreamerv3:size12m", 204_000_000, 2_000_000, 1_000_000),
        ("--env gym:CartPole-v1 --agent dreamerv3:ci", 100_000, 10_000, 110_000),
        ("--env my_module:Env", 100_000, 10_000, 110_000),
        ("--agent dreamerv3:ci", 100_000, 10_000, 110_000),
        ("--env gym:CartPole-v1 --env-steps 5000", 5_000, 1_000, 100_000),
    ],
)
def test_without_a_preset_a_run_takes_what_its_suite_and_agent_were_published_with(
    words, steps, every, rows
):
    config = parse(words.split())
    assert config.preset == "default"
    assert (config.env_steps, config.eval_every) == (steps, every)
    assert config.replay.capacity_steps == rows
    assert config.learner.checkpoint_every_s == 60.0
    changed = preset_changes(parse([*words.split(), "--workers", "7"]))
    assert changed == ["workers 2 -> 7"]


def test_an_offline_run_keeps_the_rows_of_its_files():
    config = parse("--env none --replay.load x.npz".split())
    assert config.replay.capacity_steps == 1_000_000


@pytest.mark.parametrize("words", ["", "--seed 3", "--runtime local", "--env-steps 9000"])
def test_a_run_that_names_no_task_is_the_demo(words):
    config = parse(words.split())
    assert config.preset == "quick"
    assert config.env.env == "gym:Pendulum-v1"


def test_wrong_flags_are_told_by_their_own_words_without_a_preset():
    with pytest.raises(ConfigurationError) as caught:
        parse("--env atari: --agent tdmpc2:cii --env-steps many".split())
    lines = str(caught.value).splitlines()
    assert len(lines) == 3, lines
    assert any(line.startswith("--env-steps: cannot be 'many'") for line in lines)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-smoke")])
def test_a_smoke_twin_trains_the_same_env_in_minutes(name):
    if name == "crafter-smoke":  # an extra of its own, built from source
        pytest.importorskip(
            "crafter", reason="needs crafter: pip install 'worldloom-dist[crafter]'"
        )
    small, whole = (resolve(parse(["--preset", n])) for n in (name, name.removesuffix("-smoke")))
    check_trains(small)
    assert small.env_spec == whole.env_spec
    assert small.agent.name.partition(":")[0] == whole.agent.name.partition(":")[0]
    assert small.target_agent_steps == 400


def test_a_run_that_is_all_prefill_is_refused_with_the_number_to_give():
    words = "--env gym:Pendulum-v1 --agent tdmpc2:ci --env-steps 1000"
    with pytest.raises(ConfigurationError, match=r"env_steps must be >= (\d+).*; say --env-steps"):
        check_trains(resolve(parse(words.split())))
