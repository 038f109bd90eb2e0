"""The time-index contract: what is checked, and that both directions of the shift agree."""

import numpy as np
import pytest

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.sequence import (
    PolicyVersion,
    SequenceBatch,
    StreamId,
    agent_steps,
    check_sequence,
    rows_from_gym,
    rows_to_gym,
    transitions,
)
from worldloom.core.specs import ArraySpec, EnvSpec, column_name, group_keys

SPEC = EnvSpec(
    name="test", obs={"obs": ArraySpec((1,))}, action={"action": ArraySpec((2,))}, action_repeat=2
)


def episode(steps: int, *, terminated: bool = True) -> dict:
    flags = np.zeros((2, steps), bool)
    flags[0 if terminated else 1, -1] = True
    obs = np.arange(steps + 1, dtype=np.float32)[:, None]
    action = np.arange(2 * steps, dtype=np.float32).reshape(steps, 2) / 100
    return rows_from_gym(
        {"obs": obs}, {"action": action}, np.arange(1, steps + 1), flags[0], flags[1]
    )


def test_the_reward_of_a_row_is_the_one_received_on_arrival():
    rows = episode(3)
    assert rows["reward"].tolist() == [0, 1, 2, 3]
    assert rows["is_first"].tolist() == [True, False, False, False]
    assert rows["terminated"].tolist() == [False, False, False, True]
    assert rows["action"][-1].tolist() == [0, 0]
    assert check_sequence(rows, SPEC.columns()) == 4
    assert agent_steps(rows["is_first"]) == 3


def test_both_directions_of_the_shift_agree():
    rows = episode(5, terminated=False)
    again = rows_to_gym(rows)
    assert again["reward"].tolist() == [1, 2, 3, 4, 5]
    assert again["truncated"].tolist() == [False] * 4 + [True]
    back = rows_from_gym(
        again["obs"], again["action"], again["reward"], again["terminated"], again["truncated"]
    )
    assert all(np.array_equal(back[name], rows[name]) for name in rows)


def test_transitions_pair_a_decision_with_what_it_led_to():
    rows = {name: value[None] for name, value in episode(3).items()}
    batch = SequenceBatch.from_columns(rows)
    obs, action, reward, terminated = transitions(batch)
    assert obs["obs"][0, :, 0].tolist() == [0, 1, 2, 3]
    assert action["action"].shape == (1, 3, 2)
    assert reward.tolist() == [[1, 2, 3]]
    assert terminated.tolist() == [[False, False, True]]
    assert batch.shape == (1, 4)


@pytest.mark.parametrize(
    ("column", "index", "value", "message"),
    [
        ("reward", 0, 1.0, "reward of a row with is_first"),
        ("terminated", 0, True, "a row with is_first"),
        ("truncated", 1, True, "the row after a last row"),
    ],
)
def test_a_broken_contract_is_named(column, index, value, message):
    rows = episode(3)
    rows[column][index] = value
    with pytest.raises(ShapeMismatchError, match=message):
        check_sequence(rows, SPEC.columns())


def test_a_wrong_column_is_named():
    rows = episode(2)
    with pytest.raises(ShapeMismatchError, match="column 'reward'"):
        check_sequence(rows | {"reward": rows["reward"].astype("float64")}, SPEC.columns())
    with pytest.raises(ShapeMismatchError, match="columns of a row"):
        check_sequence({k: v for k, v in rows.items() if k != "action"}, SPEC.columns())


def test_everything_that_is_not_obs_action_reward_or_flag_is_an_extra():
    columns = {name: np.zeros((1, 2)) for name in [*SPEC.columns(), "latent/deter", "obs/camera"]}
    batch = SequenceBatch.from_columns(columns)
    assert set(batch.extras) == {"latent/deter"}
    assert set(batch.obs) == {"obs", "camera"}
    doubled = batch.map(lambda array: array + 1)
    assert doubled.extras["latent/deter"].sum() == doubled.reward.sum() == 2


def test_versions_are_ordered_by_incarnation_first():
    assert PolicyVersion(2, 0) > PolicyVersion(1, 999) > PolicyVersion(1, 1)
    assert str(StreamId(3, 1, 0)) == "3.1.0"


def test_specs_survive_json_and_columns_name_their_group():
    spec = EnvSpec(
        name="x",
        obs={"camera": ArraySpec((64, 64, 3), "uint8"), "speed": ArraySpec((2,))},
        action={"action": ArraySpec((), "int32", (4,))},
        episode_limit=10,
        settings={"image_size": 64},
    )
    assert EnvSpec.from_dict(spec.to_dict()) == spec
    assert {"obs/camera", "obs/speed", "action", "reward"} <= set(spec.columns())
    assert (spec.obs["camera"].is_image, spec.obs["camera"].nbytes) == (True, 64 * 64 * 3)
    assert not spec.has_continuous_actions_only
    assert column_name("obs", "obs") == "obs"
    assert group_keys({"obs/camera": 1, "observer": 2}, "obs") == {"camera": 1}
