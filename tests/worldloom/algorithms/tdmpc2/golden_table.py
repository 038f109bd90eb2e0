"""What the shapes of TD-MPC2's reference arrays cannot tell, and how they become models and draws;
one table for all tests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.golden_support import golden_file, load_golden
from worldloom.algorithms.tdmpc2.official import (
    OfficialCheckpoint,
    from_official_state,
    load_official,
)

ALGORITHM = "tdmpc2"
SIMNORM_DIM = 8
BIN_LOW = -10.0
BIN_HIGH = 10.0
DISCOUNT = 0.99
RHO = 0.5
TAU = 0.01
LEARNING_RATE = 3e-4
ENCODER_LR_SCALE = 0.3
GRAD_CLIP = {"single": 20.0, "single_clip0p1": 0.1, "episodic": 20.0, "mt": 20.0}
MIN_STD = 0.05
MAX_STD = 2.0
TEMPERATURE = 0.5

FORWARD = 1e-5
PLANNING = 1e-4
GRADIENT = 1e-4
"""Tolerances: max|difference| / max|reference| per tensor."""
GRADIENT_FLOOR = 1e-6
PARAMETER_FLOOR = 1e-5
VANISHING_GRADIENT = 1e-7
"""Parameters may differ by PARAMETER_FLOOR. Adam's first step is lr * sign(g), so where the
gradient is smaller than VANISHING_GRADIENT, zero up to rounding, they may differ by 2 lr.
"""

VARIANTS = ("single", "episodic", "mt")


def golden(name: str) -> dict[str, np.ndarray]:
    return load_golden(ALGORITHM, name)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def official_file(name: str, **keywords: object) -> OfficialCheckpoint:
    path = golden_file(ALGORITHM, name)
    return load_official(
        path, simnorm_dim=SIMNORM_DIM, bin_low=BIN_LOW, bin_high=BIN_HIGH, **keywords
    )  # type: ignore[arg-type]


def model_of(variant: str) -> OfficialCheckpoint:
    """The reference model of a variant, from its arrays."""
    state = {name: tensor(array) for name, array in golden(f"model_{variant}.npz").items()}
    return from_official_state(state, simnorm_dim=SIMNORM_DIM, bin_low=BIN_LOW, bin_high=BIN_HIGH)


def new_name(official: str) -> str:
    """Our name of one of the authors' single-task, state-based parameters; target critics under
    ``target.``.
    """
    pairs = (
        ("_target_Qs_params.", "target."),
        ("_Qs.params.", "critics."),
        ("_reward.", "reward_head."),
    )
    for old, new in (*pairs, ("_task_emb.weight", "task_emb"), ("_action_masks", "action_masks")):
        if official.startswith(old):
            return official.replace(old, new, 1)
    return official.removeprefix("_")
