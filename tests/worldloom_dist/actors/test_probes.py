from __future__ import annotations

import numpy as np
import pytest

from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.vector import EnvStep
from worldloom.evaluation.trust import Probes
from worldloom_dist.actors.probes import MOST_EPISODES, MOST_WINDOWS, WINDOW_ROWS, ProbeCollector

SPEC = EnvSpec(name="numbers", obs={"obs": ArraySpec((1,))}, action={"action": ArraySpec((1,))})


def played(lengths: list[int], *, dies_at: int | None = None, envs: int = 1) -> Probes | None:
    """Envs whose observation is the row's place, whose reward is ten times that, and whose action
    is a hundred times that; episodes of these lengths in decisions, one after the other.
    """
    collector = ProbeCollector(SPEC, envs)
    at = 0
    for length in lengths:
        for place in range(length + 1):
            row = EnvStep.blank(SPEC, envs)
            row.live[:] = at != dies_at
            row.obs["obs"][:] = place
            row.reward[:] = 10 * place
            row.is_first[:] = place == 0
            row.truncated[:] = place == length
            collector.see(row)
            collector.acted({"action": np.full((envs, 1), 100.0 * place, np.float32)})
            at += 1
            if at - 1 == dies_at:
                break
    return collector.probes()


def test_windows_are_whole_and_know_where_they_began() -> None:
    found = played([50])
    assert found is not None
    assert set(found.offset) == {0, WINDOW_ROWS, 51 - WINDOW_ROWS}
    place = found.offset[:, None] + np.arange(WINDOW_ROWS)
    np.testing.assert_array_equal(found.batch.obs["obs"][..., 0], place)
    np.testing.assert_array_equal(found.batch.reward, 10 * place)
    action = np.where(place == 50, 0, 100 * place)  # no decision follows the last row
    np.testing.assert_array_equal(found.batch.action["action"][..., 0], action)
    np.testing.assert_array_equal(found.batch.is_first, place == 0)
    np.testing.assert_array_equal(found.batch.truncated, place == 50)
    np.testing.assert_array_equal(found.rewards[0], 10 * np.arange(51))
    assert found.terminated == [False]
    assert len(found.actions["action"]) == 50


@pytest.mark.parametrize("length", [WINDOW_ROWS - 1, WINDOW_ROWS, 79, 400, 1000])
def test_the_end_is_always_there_and_windows_stay_few(length: int) -> None:
    found = played([length])
    assert found is not None
    assert len(found.offset) <= MOST_WINDOWS + 1
    assert found.offset.max() == length + 1 - WINDOW_ROWS
    if length > 200:
        assert found.offset[-2] - found.offset[0] > length / 3


def test_only_the_first_episode_counts_and_only_of_some_envs() -> None:
    found = played([30, 60], envs=20)
    assert found is not None
    assert [len(rewards) for rewards in found.rewards] == [31] * MOST_EPISODES


def test_an_episode_that_breaks_off_counts_for_nothing() -> None:
    found = played([40, 25], dies_at=33)
    assert found is not None
    assert [len(rewards) for rewards in found.rewards] == [26]


def test_episodes_that_fill_no_window_give_nothing() -> None:
    assert played([5]) is None
