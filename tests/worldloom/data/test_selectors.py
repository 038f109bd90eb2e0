import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId
from worldloom.core.specs import TASK, ArraySpec, EnvSpec
from worldloom.data.selector_spec import parse_selector
from worldloom.data.selectors import Balanced, Mixture, Prioritised, Recency, SumTree, Uniform
from worldloom.data.sequence_buffer import SequenceBuffer


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


def balanced_of(*counts):
    """A selector whose slots are of one task after the other, this many of each."""
    selector = Balanced(sum(counts), len(counts))
    tasks = np.repeat(np.arange(len(counts)), counts)
    slots = np.arange(len(tasks))
    selector.note_tasks(slots, tasks)
    selector.add(slots)
    return selector, tasks


def test_every_task_has_its_share_of_every_batch_however_much_is_stored_of_it():
    selector, tasks = balanced_of(10_000, 600, 600)
    rng = np.random.default_rng(0)
    total = np.zeros(3)
    for _ in range(300):
        counts = np.bincount(tasks[selector.sample([(256, rng)], 0)], minlength=3)
        assert counts.sum() == 256
        assert set(counts.tolist()) <= {85, 86}
        total += counts
    np.testing.assert_allclose(total / total.sum(), 1 / 3, rtol=2e-3)


def test_a_task_with_few_windows_counts_in_proportion():
    selector, tasks = balanced_of(10_000, 600, 5)
    rng = np.random.default_rng(0)
    draws = selector.sample([(256, rng)] * 400, 0)
    share = np.bincount(tasks[draws], minlength=3) / len(draws)
    np.testing.assert_allclose(share, np.array([1, 1, 0.01]) / 2.01, rtol=0.1)
    own = draws[tasks[draws] == 1]
    slots = np.arange(10_000, 10_600)
    assert chi_square(own, slots, np.full(600, len(own) / 600)) < chi_square_bound(599)


def test_a_task_whose_windows_are_all_gone_is_not_drawn():
    selector, tasks = balanced_of(40, 3)
    selector.remove(np.arange(40, 43))
    assert set(tasks[selector.sample([(50, np.random.default_rng(0))], 0)]) == {0}
    selector.note_tasks(np.array([40]), np.array([0]))
    selector.add(np.array([40]))
    assert 40 in selector.sample([(900, np.random.default_rng(0))], 0)


def test_a_single_window_can_be_asked_for():
    selector, tasks = balanced_of(700, 700, 700)
    rng = np.random.default_rng(0)
    drawn = tasks[selector.sample([(1, rng)] * 3000, 0)]
    np.testing.assert_allclose(np.bincount(drawn) / 3000, 1 / 3, atol=0.03)


def test_balanced_is_the_own_selector_of_several_tasks_only():
    assert parse_selector("agent", has_tasks=True).parts == (("balanced", 0.0, 1.0),)
    assert parse_selector("agent").parts == (("uniform", 0.0, 1.0),)
    assert parse_selector("0.7*balanced+0.3*recency").uses_tasks
    with pytest.raises(ConfigurationError, match="cannot read 'balanced:3'"):
        parse_selector("balanced:3")


def filled(chunk):
    """A buffer of 400 rows in which one episode of four is of task 1, from chunks of this size."""
    env = EnvSpec(
        name="x",
        obs={"obs": ArraySpec((1,)), TASK: ArraySpec((), "int32")},
        action={"action": ArraySpec((1,))},
    )
    buffer = SequenceBuffer(
        env.columns(),
        SamplingSpec(batch_size=4, length=2, bootstrap=1),
        capacity_rows=400,
        selector=Balanced(400, 2),
        task_column="obs/task",
    )
    for start in range(0, 640, chunk):  # the oldest rows are gone by the end
        rows = {name: spec.zeros(chunk) for name, spec in env.columns().items()}
        number = np.arange(start, start + chunk)
        rows["obs"][:, 0] = number
        rows["obs/task"][:] = number // 16 % 4 == 0
        rows["is_first"][:] = number % 16 == 0
        rows["truncated"][:] = number % 16 == 15
        buffer.append(StreamId(0, 0, 0), start // chunk, rows)
    return buffer


def test_draws_of_several_tasks_depend_on_the_rows_alone():
    windows = [filled(chunk).sample(100, np.random.default_rng(3)) for chunk in (1, 32)]
    np.testing.assert_array_equal(windows[0].columns["obs"], windows[1].columns["obs"])
    tasks = windows[0].columns["obs/task"]
    assert (tasks == tasks[:, :1]).all()
    assert 0.15 < tasks[:, 0].mean() < 0.35, "a fourth, because no task has a full share"
