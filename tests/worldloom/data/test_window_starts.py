"""Starts of windows are named by row ids, and what is known of them follows the rows through the
ring.
"""

import numpy as np

from worldloom.data.selectors import Prioritised
from worldloom.data.window_starts import WindowStarts

CAPACITY = 10


def test_starts_are_drawn_by_id_whatever_their_slot_and_never_once_evicted():
    starts = WindowStarts(CAPACITY, None)
    starts.add(np.array([7, 9, 12]))
    rng = np.random.default_rng(0)
    assert set(starts.draw([(200, rng)], 7, online=False).tolist()) == {7, 9, 12}
    starts.evict(np.array([7, 8, 9]))
    assert starts.count == 1
    assert set(starts.draw([(50, rng)], 10, online=False).tolist()) == {12}


def test_new_windows_come_first_and_once_when_asked_for():
    starts = WindowStarts(CAPACITY, None)
    starts.add(np.arange(5))
    starts.online.put(np.array([0, 2, 4]))
    rng = np.random.default_rng(0)
    assert starts.draw([(2, rng)], 0, online=True).tolist() == [0, 2]
    assert starts.draw([(3, rng)], 0, online=True)[0] == 4
    assert starts.draw([(0, rng)], 0, online=True).tolist() == []


def test_priorities_reach_only_windows_that_are_there():
    starts = WindowStarts(CAPACITY, Prioritised(CAPACITY, 1.0))
    starts.add(np.array([11, 13]))
    outcome = starts.update_priorities(
        np.array([1, 11, 12, 13, 21]), np.array([5.0, 1e9, 5.0, 1.0, 5.0]), range(10, 20)
    )
    assert outcome == (2, 3), "slots 1 and 3 hold rows 11 and 13 now; row 12 starts nothing"
    assert (starts.draw([(100, np.random.default_rng(0))], 10, online=False) == 11).all()


def test_what_was_learnt_comes_back_for_windows_that_are_still_there():
    def made(first: int, stop: int) -> WindowStarts:
        starts = WindowStarts(CAPACITY, Prioritised(CAPACITY, 1.0))
        starts.add(np.arange(first, stop))
        return starts

    before = made(12, 20)
    before.update_priorities(np.arange(12, 20), np.arange(12.0, 20.0), range(12, 20))
    ids, weights = before.export_weights(range(12, 20))
    assert sorted(zip(ids.tolist(), weights[0].tolist(), strict=False)) == [
        (n, float(n)) for n in range(12, 20)
    ]
    assert weights[0, -1] == 19.0, "what a new window gets"
    after = made(15, 23)
    assert after.restore_weights(ids, weights, range(15, 23))
    ids, weights = after.export_weights(range(15, 23))
    found = dict(zip(ids.tolist(), weights[0].tolist(), strict=False))
    assert found == {15: 15.0, 16: 16.0, 17: 17.0, 18: 18.0, 19: 19.0, 20: 19.0, 21: 19.0, 22: 19.0}


def test_weights_of_another_selector_are_refused():
    starts = WindowStarts(CAPACITY, None)
    starts.add(np.arange(4))
    assert not starts.restore_weights(np.arange(4), np.ones((1, 5)), range(4))
    assert starts.export_weights(range(4))[1].shape == (0, 1)
