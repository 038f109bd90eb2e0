"""Parameter counts of every model size against the authors' printed numbers."""

from __future__ import annotations

import pytest
import torch

from worldloom.algorithms.tdmpc2.agent import make_architecture
from worldloom.algorithms.tdmpc2.config import SIZES, Architecture
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.spec import PRESETS, resolve
from worldloom.core.specs import ArraySpec, EnvSpec

VECTOR = {24: {"obs": ArraySpec((24,))}, 39: {"obs": ArraySpec((39,))}}
PARTS = ("encoder", "dynamics", "reward_head", "pi", "critics", "task_emb", "termination")


def count(architecture: Architecture) -> tuple[int, dict[str, int]]:
    """Learnable parameters, in all and per part (a model on the meta device has no data)."""
    with torch.device("meta"):
        model = TDMPC2Networks(architecture)
    named = [(name.partition(".")[0], p.numel()) for name, p in model.named_parameters()]
    return sum(n for _, n in named), {
        part: sum(n for name, n in named if name == part) for part in PARTS
    }


SINGLE = {
    ("1m", 24): (1_214_651, 40_064, 250_752, 240_101, 203_532, 480_202),
    ("1m", 39): (1_218_491, 43_904, 250_752, 240_101, 203_532, 480_202),
    ("5m", 24): (4_960_618, 139_520, 794_112, 582_245, 533_516, 2_911_225),
    ("5m", 39): (4_964_458, 143_360, 794_112, 582_245, 533_516, 2_911_225),
    ("19m", 24): (18_062_442, 1_868_032, 2_636_032, 1_950_821, 1_853_452, 9_754_105),
    ("19m", 39): (18_077_802, 1_883_392, 2_636_032, 1_950_821, 1_853_452, 9_754_105),
    ("48m", 24): (47_208_298, 7_860_224, 5_987_584, 4_790_117, 4_619_788, 23_950_585),
    ("48m", 39): (47_235_178, 7_887_104, 5_987_584, 4_790_117, 4_619_788, 23_950_585),
    ("317m", 24): (312_595_417, 56_119_328, 28_102_688, 22_876_261, 22_487_052, 183_010_088),
    ("317m", 39): (312_656_857, 56_180_768, 28_102_688, 22_876_261, 22_487_052, 183_010_088),
}
# (size, tasks): task_dim, latent_dim if it differs, total, encoder, dynamics, reward, pi, critics,
# embedding
MULTI = {
    ("1m", 30): (96, None, 1_426_427, 64_640, 287_616, 276_965, 240_396, 553_930, 2_880),
    ("1m", 80): (96, None, 1_435_067, 68_480, 287_616, 276_965, 240_396, 553_930, 7_680),
    ("5m", 30): (64, None, 5_241_066, 155_904, 826_880, 615_013, 566_284, 3_075_065, 1_920),
    ("5m", 80): (96, None, 5_389_930, 167_936, 843_264, 631_397, 582_668, 3_156_985, 7_680),
    ("19m", 30): (
        64,
        512,
        16_031_210,
        1_670_656,
        2_176_512,
        1_754_213,
        1_656_844,
        8_771_065,
        1_920,
    ),
    ("19m", 80): (
        96,
        None,
        18_970_218,
        1_981_696,
        2_734_336,
        2_049_125,
        1_951_756,
        10_245_625,
        7_680,
    ),
    ("48m", 30): (
        64,
        None,
        48_242_410,
        7_974_912,
        6_102_272,
        4_904_805,
        4_734_476,
        24_524_025,
        1_920,
    ),
    ("48m", 80): (
        96,
        None,
        48_791_146,
        8_059_136,
        6_159_616,
        4_962_149,
        4_791_820,
        24_810_745,
        7_680,
    ),
    ("317m", 30): (
        96,
        None,
        317_316_889,
        56_512_544,
        28_495_904,
        23_269_477,
        22_880_268,
        186_155_816,
        2_880,
    ),
    ("317m", 80): (
        96,
        None,
        317_383_129,
        56_573_984,
        28_495_904,
        23_269_477,
        22_880_268,
        186_155_816,
        7_680,
    ),
}


@pytest.mark.parametrize(("size", "obs"), list(SINGLE))
def test_presets_have_the_official_parameter_counts(size: str, obs: int) -> None:
    env = EnvSpec(
        name="dmc:x", obs=VECTOR[obs], action={"action": ArraySpec((6,))}, may_terminate=False
    )
    total, parts = count(make_architecture(resolve(PRESETS[size](), env), env))
    want = SINGLE[size, obs]
    assert (total, *(parts[name] for name in PARTS[:5])) == want


@pytest.mark.parametrize(("size", "tasks"), list(MULTI))
def test_multi_task_models_have_the_official_parameter_counts(size: str, tasks: int) -> None:
    task_dim, latent, *want = MULTI[size, tasks]
    sizes = SIZES[size] | ({"latent_dim": latent} if latent else {})
    obs = VECTOR[24 if tasks == 30 else 39]
    total, parts = count(
        Architecture(obs=obs, action_dim=6, num_tasks=tasks, task_dim=task_dim or 0, **sizes)
    )
    assert [total, *(parts[name] for name in PARTS[:6])] == want


@pytest.mark.parametrize(
    ("size", "obs", "action", "episodic", "total"),
    [
        ("5m", ArraySpec((24,)), 6, True, 5_488_491),
        ("1m", ArraySpec((24,)), 6, True, 1_413_948),
        ("5m", ArraySpec((223,)), 38, False, 5_159_082),
        ("5m", ArraySpec((67,)), 21, False, 5_040_776),
        ("5m", ArraySpec((5,)), 1, False, 4_932_704),
        ("5m", ArraySpec((9, 64, 64), "uint8"), 6, False, 4_879_370),
    ],
)
def test_other_spaces_have_the_official_parameter_counts(
    size: str, obs: ArraySpec, action: int, episodic: bool, total: int
) -> None:
    assert (
        count(
            Architecture(obs={"obs": obs}, action_dim=action, is_episodic=episodic, **SIZES[size])
        )[0]
        == total
    )
