"""A policy's first decision is held against what the env takes."""

import numpy as np
import pytest

from worldloom.core.exceptions import TrainingError
from worldloom.core.sequence import NO_POLICY
from worldloom.core.specs import ArraySpec
from worldloom_dist.actors.acting import Actions, check_actions

BOX = {"action": ArraySpec((2,))}
CHOICE = {"action": ArraySpec((), "int32", (4,))}


@pytest.mark.parametrize(
    ("specs", "action", "said"),
    [
        (
            CHOICE,
            np.zeros((3, 1), np.float32),
            r"is float32 of shape \(3, 1\), and the env takes int",
        ),
        (
            CHOICE,
            np.array([0, 1, 4]),
            r"is \[0, 1, 4\], and the env takes int .* choices of \(4,\)",
        ),
        (BOX, np.zeros(3, np.int64), "is int64 of shape"),
        (BOX, np.zeros((3, 1), np.float32), r"of shape \(3, 1\), and the env takes float32"),
    ],
)
def test_an_action_of_another_kind_is_named(specs, action, said):
    with pytest.raises(TrainingError, match=said):
        check_actions(Actions({"action": action}, {}, NO_POLICY), specs, 3)


def test_an_action_that_is_missing_is_named():
    with pytest.raises(TrainingError, match="gives no action 'action'"):
        check_actions(Actions({"arm": np.zeros((3, 2))}, {}, NO_POLICY), BOX, 3)


def test_what_the_env_takes_is_taken():
    check_actions(Actions({"action": np.zeros((3, 2), np.float32)}, {}, NO_POLICY), BOX, 3)
    check_actions(Actions({"action": np.array([0, 3, 1])}, {}, NO_POLICY), CHOICE, 3)
