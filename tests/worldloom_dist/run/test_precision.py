"""``--agent.precision auto`` is chosen when a run begins, and kept."""

import json

import pytest
import torch

from tests.worldloom_dist.local_runs import newest_state
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.nn import product_speed
from worldloom.nn.product_speed import ProductSpeed
from worldloom_dist import launch
from worldloom_dist.run.cli import parse
from worldloom_dist.run.precision import choose_precision, keep_precision

AUTO = ("--agent.precision", "auto")


@pytest.fixture
def half_is(monkeypatch, tmp_path):
    """Say whether this CPU has the instruction, and how fast it is with it."""
    monkeypatch.setenv("WORLDLOOM_CACHE_DIR", str(tmp_path / "cache"))

    def say(has, float32_ms=4.0, bfloat16_ms=2.0):
        monkeypatch.setattr(product_speed, "has_half_products", lambda: has)
        monkeypatch.setattr(
            product_speed, "measured_speed", lambda shapes: ProductSpeed(float32_ms, bfloat16_ms)
        )

    return say


def config_of(*words):
    return parse(["--preset", "debug", "--runtime", "local", *words])


@pytest.mark.parametrize("agent", ["tdmpc2:ci", "dreamerv3:ci"])
def test_without_the_flag_nothing_is_measured_and_nothing_changes(half_is, agent):
    half_is(True)
    config = config_of("--agent", agent)
    assert choose_precision(config) == (config, "")
    fixed = config_of("--agent", agent, "--agent.precision", "float32")
    assert choose_precision(fixed) == (fixed, "")


@pytest.mark.parametrize("agent", ["tdmpc2:ci", "dreamerv3:ci"])
@pytest.mark.parametrize(
    ("has", "bfloat16_ms", "expected", "said"),
    [
        (False, 2.0, "float32", "no instruction"),
        (True, 2.0, "bfloat16", "take 0.50x the time"),
        (True, 8.0, "float32", "take 2.00x the time"),
    ],
)
def test_auto_takes_what_is_faster_and_says_so(half_is, agent, has, bfloat16_ms, expected, said):
    half_is(has, bfloat16_ms=bfloat16_ms)
    config, line = choose_precision(config_of("--agent", agent, *AUTO))
    assert config.agent_config().precision == expected
    assert line.startswith(f"{expected}: ")
    assert said in line
    assert "\n" not in line


def test_a_learner_elsewhere_is_not_measured_here(half_is):
    half_is(True)
    config = config_of(*AUTO, "--learner.device", "cuda")
    same, line = choose_precision(config)
    assert same == config
    assert "not measured" in line


@pytest.mark.parametrize(
    ("before", "expected"), [(("--agent.precision", "bfloat16"), "bfloat16"), ((), "float32")]
)
def test_a_run_that_goes_on_computes_as_before(before, expected):
    kept = keep_precision(config_of(*AUTO), config_of(*before))
    assert kept.agent_config().precision == expected
    changed = config_of("--agent.precision", "float32")
    assert keep_precision(changed, config_of(*before)) == changed


def trained(folder, *words):
    line = [*TINY["tdmpc2:ci"], "--metrics-port", "0", "--run-dir", str(folder), *words]
    assert launch.main(line) == 0
    return newest_state(folder)


def test_without_the_instruction_auto_trains_the_same_bits(half_is, tmp_path, capsys):
    half_is(False)
    states = [
        trained(tmp_path / name, "--env-steps", "60", "--agent.precision", precision)
        for name, precision in (("one", "float32"), ("two", "auto"))
    ]
    assert "no instruction" in capsys.readouterr().out
    models = [state["learner"]["agent"]["model"] for state in states]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_resumed_run_keeps_what_was_chosen(half_is, tmp_path):
    half_is(True)
    trained(tmp_path / "run", "--env-steps", "60", *AUTO)
    half_is(False)  # as on another machine
    trained(tmp_path / "run", "--env-steps", "90", *AUTO, "--if-exists", "resume")
    found = json.loads((tmp_path / "run/config.json").read_text())
    assert found["run"]["agent_overrides"]["precision"] == "bfloat16"
    assert found["agent"]["precision"] == "bfloat16"
