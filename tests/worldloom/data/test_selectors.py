import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import ConfigurationError
from worldloom.data.selectors import Mixture, Prioritised, Recency, SumTree, Uniform


def chi_square_bound(degrees):
    """About the 99.99th percentile (Wilson-Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.72 * np.sqrt(2 / (9 * degrees))) ** 3


def chi_square(draws, slots, expected):
    counts = np.array([np.count_nonzero(draws == slot) for slot in slots])
    assert counts.sum() == len(draws)
    return float(np.sum((counts - expected) ** 2 / expected))


@given(size=st.integers(1, 9000), seed=st.integers(0, 1000))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_tree_selects_what_a_running_sum_selects(size, seed):
    rng = np.random.default_rng(seed)
    tree = SumTree(size, np.uint8)
    leaves = np.zeros(size, np.int64)
    for _ in range(4):
        slots = rng.choice(size, size=max(1, size // 3), replace=False)
        values = rng.integers(0, 3, len(slots))
        tree.set(slots, values)
        leaves[slots] = values
    running = np.cumsum(leaves)
    assert tree.total == running[-1]
    position = int(rng.integers(size))
    assert tree.prefix(position) == leaves[:position].sum()
    if running[-1]:
        targets = rng.integers(0, running[-1], 20)
        np.testing.assert_array_equal(
            tree.select(targets), np.searchsorted(running, targets, side="right")
        )


@given(seed=st.integers(0, 1000))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_float_tree_never_selects_an_empty_leaf(seed):
    rng = np.random.default_rng(seed)
    tree = SumTree(5000, np.float64)
    slots = rng.choice(5000, 50, replace=False)
    tree.set(slots, rng.random(50) * 10.0 ** rng.integers(-8, 8, 50))
    targets = np.concatenate(
        [rng.random(200) * tree.total, [0.0, np.nextafter(tree.total, 0), tree.total]]
    )
    assert set(tree.select(targets)) <= set(slots)


def test_uniform_passes_chi_square_and_ignores_what_was_removed():
    selector = Uniform(1000)
    selector.add(np.arange(100, 300))
    selector.remove(np.arange(150, 180))
    slots = np.r_[100:150, 180:300]
    draws = selector.sample([(20_000, np.random.default_rng(0))], origin=200)
    assert chi_square(draws, slots, 20_000 / len(slots)) < chi_square_bound(len(slots) - 1)


def test_draws_depend_on_age_and_not_on_where_the_ring_begins():
    first = Uniform(500)
    second = Uniform(500)
    first.add(np.arange(0, 400))
    second.add((np.arange(0, 400) + 300) % 500)
    a = first.sample([(50, np.random.default_rng(1))], origin=0)
    b = second.sample([(50, np.random.default_rng(1))], origin=300)
    np.testing.assert_array_equal((a + 300) % 500, b)


def test_recency_prefers_new_rows_by_one_over_age():
    selector = Recency(64, power=1.0)
    selector.add(np.arange(40))
    draws = selector.sample([(20_000, np.random.default_rng(0))], origin=0)
    age = np.arange(1, 41)
    weights = np.log((age + 1) / age) / np.log(41)
    assert chi_square(draws, 40 - age, 20_000 * weights) < chi_square_bound(39)


def test_recency_of_power_zero_is_uniform():
    selector = Recency(64, power=0.0)
    selector.add(np.arange(40))
    draws = selector.sample([(20_000, np.random.default_rng(0))], origin=0)
    assert chi_square(draws, np.arange(40), 500.0) < chi_square_bound(39)


def test_priorities_set_the_odds_and_new_starts_get_the_highest():
    selector = Prioritised(300, exponent=0.5)
    selector.add(np.array([3, 250]))
    selector.update(np.array([3, 250]), np.array([16.0, 4.0]))
    selector.add(np.array([77]))
    draws = selector.sample([(20_000, np.random.default_rng(0))], origin=100)
    assert chi_square(draws, [3, 250, 77], 20_000 * np.array([0.4, 0.2, 0.4])) < chi_square_bound(2)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_a_priority_that_spoils_the_odds_is_refused_and_changes_nothing(bad):
    selector = Prioritised(10)
    selector.add(np.array([1, 2]))
    with pytest.raises(ConfigurationError, match="> 0 and finite"):
        selector.update(np.array([1, 2]), np.array([1.0, bad]))
    assert set(selector.sample([(50, np.random.default_rng(0))], origin=0)) == {1, 2}


def test_a_mixture_draws_from_its_parts_in_proportion():
    prioritised = Prioritised(10, exponent=1.0)
    selector = Mixture([(Uniform(10), 0.5), (prioritised, 0.5)])
    selector.add(np.arange(4))
    selector.update(np.arange(4), np.array([1.0, 1.0, 1.0, 5.0]))
    draws = selector.sample([(20_000, np.random.default_rng(0))], origin=0)
    expected = 20_000 * (0.5 / 4 + 0.5 * np.array([1, 1, 1, 5]) / 8)
    assert len(draws) == 20_000
    assert chi_square(draws, np.arange(4), expected) < chi_square_bound(3)
    selector.remove(np.array([3]))
    assert 3 not in selector.sample([(500, np.random.default_rng(0))], origin=0)


def test_weights_come_back_exactly_also_those_of_a_mixture():
    def made() -> Mixture:
        selector = Mixture(
            [(Prioritised(300, 0.6), 0.5), (Uniform(300), 0.2), (Prioritised(300, 1.0), 0.3)]
        )
        selector.add(np.arange(200))
        return selector

    first = made()
    second = made()
    slots = np.arange(0, 200, 3)
    first.update(slots, np.random.default_rng(0).uniform(0.01, 50.0, len(slots)))
    weights = first.export_weights(np.arange(200))
    assert weights.shape == (2, 201)
    second.restore_weights(np.arange(200), weights)
    for selector in (first, second):
        selector.add(np.arange(200, 210))
    draws = [
        selector.sample([(500, np.random.default_rng(1))], origin=7) for selector in (first, second)
    ]
    np.testing.assert_array_equal(*draws)


def test_mixture_shares_must_sum_to_one():
    with pytest.raises(ConfigurationError, match="sum to 1"):
        Mixture([(Uniform(4), 0.5)])
