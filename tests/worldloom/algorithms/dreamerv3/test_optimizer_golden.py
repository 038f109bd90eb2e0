"""The optimizer follows the reference trajectories over five updates in every variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.golden_support import assert_agrees, load_golden
from worldloom.nn.optim import LaProp, LaPropConfig

pytestmark = pytest.mark.golden

VARIANTS = {
    "default": LaPropConfig(),
    "nowarmup_lr1e-2": LaPropConfig(lr=1e-2, warmup=0),
    "warmup3_lr1e-2": LaPropConfig(lr=1e-2, warmup=3),
    "wd_nowarmup": LaPropConfig(lr=1e-2, warmup=0, weight_decay=0.1),
    "noagc": LaPropConfig(lr=1e-2, warmup=0, agc=0.0),
}
TOLERANCE = 1.5e-4
"""Of the reference itself against float64, worst on near-zero entries."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_updates_follow_the_reference(variant: str) -> None:
    arrays = load_golden("dreamerv3", "optimizer.npz")
    names = [key.removeprefix("param0/") for key in arrays if key.startswith("param0/")]
    params = [torch.from_numpy(arrays[f"param0/{name}"].copy()) for name in names]
    optimizer = LaProp(params, VARIANTS[variant])
    for step in range(5):
        before = [p.clone() for p in params]
        optimizer.step([torch.from_numpy(arrays[f"grad{step}/{name}"].copy()) for name in names])
        for name, old, new in zip(names, before, params, strict=True):
            expected, update = (
                arrays[f"{variant}/{key}/{name}"] for key in (f"param{step + 1}", f"update{step}")
            )
            rounding = 2.0**-22 * float(np.abs(expected).max())
            assert_agrees(
                new - old,
                update,
                tolerance=TOLERANCE,
                name=f"update {step} of {name}",
                floor=rounding,
            )
            moved = (step + 1) * TOLERANCE * float(np.abs(update).max())
            assert_agrees(
                new, expected, tolerance=2.0**-22, name=f"{name} after update {step}", floor=moved
            )
