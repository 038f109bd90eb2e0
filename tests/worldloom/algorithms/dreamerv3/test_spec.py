"""Presets have the official sizes and parameter counts; the spec tells the system what it must
know.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from worldloom.algorithms.dreamerv3.networks import Networks
from worldloom.algorithms.dreamerv3.spec import DEFAULT_PRESET, PRESETS
from worldloom.algorithms.registry import (
    agent_names,
    agent_spec,
    architecture_changes,
    env_defaults,
    make_agent_config,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.config import EnvConfig

IMAGE = EnvSpec(
    name="image",
    obs={"obs": ArraySpec((64, 64, 3), "uint8")},
    action={"action": ArraySpec((), "int64", (6,))},
)
PROPRIO = EnvSpec(name="proprio", obs={"obs": ArraySpec((24,))}, action={"action": ArraySpec((6,))})

PARTS = ("model.enc", "model.dyn", "model.dec", "model.rew", "model.con", "actor", "critic")
COUNTS = {
    ("size1m", "image"): (14_304, 376_704, 80_595, 57_663, 41_153, 49_926, 66_111),
    ("size12m", "image"): (220_416, 5_979_648, 1_272_003, 721_407, 656_129, 789_510, 853_503),
    ("size25m", "image"): (
        493_824,
        13_442_304,
        2_857_635,
        1_573_503,
        1_475_713,
        1_774_086,
        1_869_951,
    ),
    ("size50m", "image"): (
        876_032,
        23_886_848,
        5_076_355,
        2_753_279,
        2_622_977,
        3_151_878,
        3_279_615,
    ),
    ("size100m", "image"): (
        1_966_848,
        53_721_600,
        11_413_059,
        6_095_871,
        5_900_545,
        7_087_110,
        7_278_591,
    ),
    ("size200m", "image"): (
        3_492_864,
        95_483_904,
        20_282_115,
        10_749_183,
        10_488_833,
        12_595_206,
        12_850_431,
    ),
    ("size400m", "image"): (
        7_850_496,
        214_791_168,
        45_617_283,
        23_987_967,
        23_597_569,
        28_329_990,
        28_712_703,
    ),
    ("size1m", "proprio"): (10_112, 364_416, 51_096, 57_663, 41_153, 50_316, 66_111),
    ("size12m", "proprio"): (138_752, 5_783_040, 794_136, 721_407, 656_129, 791_052, 853_503),
    ("size25m", "proprio"): (
        306_432,
        12_999_936,
        1_781_016,
        1_573_503,
        1_475_713,
        1_776_396,
        1_869_951,
    ),
    ("size50m", "proprio"): (
        539_648,
        23_100_416,
        3_161_112,
        2_753_279,
        2_622_977,
        3_154_956,
        3_279_615,
    ),
    ("size100m", "proprio"): (
        1_202_688,
        51_952_128,
        7_100_952,
        6_095_871,
        5_900_545,
        7_091_724,
        7_278_591,
    ),
    ("size200m", "proprio"): (
        2_127_872,
        92_338_176,
        12_613_656,
        10_749_183,
        10_488_833,
        12_601_356,
        12_850_431,
    ),
    ("size400m", "proprio"): (
        4_764_672,
        207_713_280,
        28_357_656,
        23_987_967,
        23_597_569,
        28_339_212,
        28_712_703,
    ),
}
"""Trainable parameters of each part, measured on the official code; its observation keys are
single, as here.
"""


@pytest.mark.parametrize(("preset", "kind"), COUNTS)
def test_parameter_counts_are_the_official_ones(preset: str, kind: str) -> None:
    with torch.device("meta"):
        networks = Networks(PRESETS[preset](), IMAGE if kind == "image" else PROPRIO)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in networks.trained().items():
        counts[next(part for part in PARTS if name.startswith(part))] += parameter.numel()
    assert tuple(counts.values()) == COUNTS[preset, kind]
    assert sum(p.numel() for p in networks.slow_critic.parameters()) == counts["critic"]


def test_every_preset_can_be_asked_for_by_name() -> None:
    wanted = {
        f"dreamerv3:{size}"
        for size in ("ci", *(f"size{n}m" for n in (1, 12, 25, 50, 100, 200, 400)))
    }
    assert {name for name in agent_names() if name.startswith("dreamerv3")} == wanted
    assert make_agent_config("dreamerv3").name == f"dreamerv3:{DEFAULT_PRESET}"
    for preset, make in PRESETS.items():
        assert make().name == f"dreamerv3:{preset}"


def test_spec_reads_windows_of_one_context_row_and_64_trained_ones() -> None:
    spec = agent_spec(make_agent_config("dreamerv3:size12m"), PROPRIO)
    sampling = spec.sampling
    assert (sampling.batch_size, sampling.length, sampling.context, sampling.bootstrap) == (
        16,
        64,
        1,
        0,
    )
    assert sampling.cross_episodes
    assert sampling.online
    assert spec.train_ratio == 32
    assert spec.prefill_agent_steps == 1088
    assert not spec.random_prefill
    assert spec.writes_back
    assert {name: (e.shape, e.dtype) for name, e in spec.extras.items()} == {
        "latent/deter": ((2048,), "uint16"),
        "latent/stoch": ((32,), "uint8"),
    }


def test_env_settings_are_those_of_the_official_runs() -> None:
    defaults = env_defaults(make_agent_config("dreamerv3:size12m"))
    atari = EnvConfig(env="atari:pong").with_defaults(defaults).resolved()
    assert (atari.image_size, atari.grayscale, atari.frame_stack, atari.action_repeat) == (
        96,
        True,
        1,
        4,
    )
    assert (atari.sticky, atari.noops, atari.full_actions, atari.time_limit) == (
        0.25,
        30,
        True,
        27_000,
    )
    dmc = EnvConfig(env="dmc:walker-walk").with_defaults(defaults).resolved()
    assert (dmc.image_size, dmc.action_repeat, dmc.frame_stack) == (64, 1, 1)


def test_a_resumed_run_may_change_rates_but_no_sizes() -> None:
    was = make_agent_config("dreamerv3:ci")
    assert (
        architecture_changes(
            was, make_agent_config("dreamerv3:ci", {"lr": 1e-5, "entropy_scale": 0.1})
        )
        == []
    )
    (change,) = architecture_changes(was, make_agent_config("dreamerv3:ci", {"units": 32}))
    assert "agent.units" in change


def test_spec_imports_no_torch() -> None:
    code = "import sys, worldloom.algorithms.dreamerv3.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
