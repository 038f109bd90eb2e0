import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import ConfigurationError
from worldloom.data.rate_limiter import RateLimiter, RateLimits

LIMITS = st.builds(
    RateLimits,
    train_ratio=st.sampled_from([0.1, 0.5, 1.0, 3.7, 32.0, 768.0]),
    prefill_agent_steps=st.integers(0, 300),
    batch_positions=st.sampled_from([1, 7, 768, 1024]),
    pretrain_updates=st.integers(0, 5),
    max_insert_steps=st.sampled_from([1, 5, 64]),
    lead_share=st.sampled_from([0.0, 0.3, 1.0]),
    offline_updates=st.sampled_from([0, 0, 1, 4]),
)


@given(limits=LIMITS, choices=st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=200))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_debt_stays_in_its_bounds_and_one_side_may_always_proceed(limits, choices):
    limiter = RateLimiter(limits)
    upper = max(
        limits.slack_insert, limits.pretrain_positions + limits.ratio * limits.max_insert_steps
    )
    for prefers_insert, steps in choices:
        steps = min(steps, limits.max_insert_steps)
        may_insert = limiter.may_insert(steps)
        may_sample = limiter.may_sample(limits.batch_positions)
        assert may_insert or may_sample
        if may_insert and (prefers_insert or not may_sample):
            limiter.inserted(steps)
        else:
            limiter.sampled(limits.batch_positions)
        if limiter.is_prefilled:
            assert -limits.slack_sample <= limiter.debt <= upper


@pytest.mark.parametrize(
    ("ratio", "batch"), [(32.0, 1024), (0.5, 64), (768.0, 768 * 16), (3.7, 100)]
)
@pytest.mark.parametrize("insert_chance", [0.1, 0.9])
def test_the_ratio_error_is_below_one_percent_past_a_hundred_bands(ratio, batch, insert_chance):
    limits = RateLimits(train_ratio=ratio, prefill_agent_steps=100, batch_positions=batch)
    limiter = RateLimiter(limits)
    limiter.inserted(100)
    goal = 100 + 100 * limits.band_positions / limits.ratio
    rng = np.random.default_rng(0)
    while limiter.agent_steps < goal:
        wants_insert = rng.random() < insert_chance
        if limiter.may_insert(64) and (wants_insert or not limiter.may_sample(batch)):
            limiter.inserted(64)
        elif limiter.may_sample(batch):
            limiter.sampled(batch)
    owed = limits.ratio * (limiter.agent_steps - 100)
    assert abs(limiter.positions - owed) <= 0.01 * owed


@given(limits=LIMITS, steps=st.lists(st.integers(1, 64), max_size=100))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_lock_step_updates_follow_the_schedule_to_the_unit(limits, steps):
    limiter = RateLimiter(limits)
    updates = 0
    for count in steps:
        limiter.inserted(count)
        due = limiter.updates_due(limiter.agent_steps)
        while updates < due:
            limiter.sampled(limits.batch_positions)
            updates += 1
        if limiter.is_prefilled:
            assert 0 <= limiter.debt < limits.batch_positions
        else:
            assert updates == limits.offline_updates


def test_one_update_per_step_after_prefill_and_pretraining():
    limiter = RateLimiter(
        RateLimits(
            train_ratio=768, prefill_agent_steps=500, batch_positions=768, pretrain_updates=500
        )
    )
    assert [limiter.updates_due(n) for n in (0, 499, 500, 501, 1500)] == [0, 0, 500, 501, 1500]


def test_a_ratio_of_a_tenth_does_not_drift():
    limiter = RateLimiter(RateLimits(train_ratio=0.1, prefill_agent_steps=0, batch_positions=1))
    assert limiter.updates_due(10**15) == 10**14


def test_the_pretraining_blocks_inserts_until_it_is_paid():
    limiter = RateLimiter(
        RateLimits(
            train_ratio=1,
            prefill_agent_steps=10,
            batch_positions=4,
            pretrain_updates=100,
            max_insert_steps=2,
        )
    )
    limiter.inserted(10)
    paid = 0
    while not limiter.may_insert(2):
        assert limiter.may_sample(4)
        limiter.sampled(4)
        paid += 1
    assert 90 < paid <= 100


def test_sampling_waits_for_the_prefill():
    limiter = RateLimiter(RateLimits(train_ratio=1, prefill_agent_steps=10, batch_positions=1))
    limiter.inserted(9)
    assert limiter.may_insert(64)
    assert not limiter.may_sample(1)
    limiter.inserted(1)
    assert limiter.may_sample(1)


def test_a_band_that_could_block_both_sides_is_refused_with_the_formula():
    with pytest.raises(
        ConfigurationError, match=r"1024 \+ 32 \* 64 = 3072; widen the band to 96 agent steps"
    ):
        RateLimits(train_ratio=32, prefill_agent_steps=0, batch_positions=1024, band_agent_steps=95)
    RateLimits(train_ratio=32, prefill_agent_steps=0, batch_positions=1024, band_agent_steps=96)


@pytest.mark.parametrize("field", ["train_ratio", "batch_positions", "max_insert_steps"])
def test_a_setting_of_zero_is_refused(field):
    with pytest.raises(ConfigurationError, match=field):
        RateLimits(
            **({"train_ratio": 1.0, "prefill_agent_steps": 0, "batch_positions": 1} | {field: 0})
        )


@given(limits=LIMITS, steps=st.integers(0, 10**6), positions=st.integers(0, 10**9))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_run_that_goes_on_with_another_ratio_owes_what_that_asks_for_from_now_on(
    limits, steps, positions
):
    limiter = RateLimiter(limits)
    limiter.rebase(limits.prefill_agent_steps + steps, positions)
    limiter.clamp_debt()
    counted = max(0, positions - limits.offline_positions)
    unpaid = limits.pretrain_positions - counted
    most = (
        limits.slack_insert
        if unpaid <= 0
        else max(limits.slack_insert, unpaid + limits.ratio * limits.max_insert_steps)
    )
    assert -limits.slack_sample <= limiter.debt <= most
    due_now = limiter.updates_due(limiter.agent_steps) * limits.batch_positions - positions
    assert due_now <= most + max(0, limits.offline_positions - positions)


ACTS = st.sampled_from(("make", "store", "sample", "checkpoint", "kill learner", "restart limiter"))


@given(limits=LIMITS, acts=st.lists(st.tuples(ACTS, st.integers(1, 64)), max_size=300))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_the_ratio_holds_over_any_number_of_lost_learners_and_restarts(limits, acts):
    limiter = RateLimiter(limits)
    saved = 0
    bound = max(
        limits.slack_insert, limits.pretrain_positions + limits.ratio * limits.max_insert_steps
    )
    for act, steps in acts:
        steps = min(steps, limits.max_insert_steps)
        if act == "make" and limiter.may_insert(steps):
            before = limiter.steps_made
            limiter.steps_in_hand += steps
            made = limiter.limits.ratio * (limiter.steps_made - limits.prefill_agent_steps)
            assert limiter.positions >= limits.offline_positions, "offline updates come first"
            owed = made + limits.pretrain_positions
            owed -= limiter.positions - limits.offline_positions
            assert before < limits.prefill_agent_steps or owed <= limits.slack_insert
        elif act == "store":
            steps = min(steps, limiter.steps_in_hand)
            limiter.steps_in_hand -= steps
            limiter.inserted(steps)
        elif act == "sample" and limiter.may_sample(limits.batch_positions):
            limiter.sampled(limits.batch_positions)
        elif act == "checkpoint":
            saved = limiter.positions
        elif act == "kill learner":
            limiter.rebase(limiter.agent_steps, saved)
        elif act == "restart limiter":
            successor = RateLimiter(limits)
            successor.rebase(limiter.agent_steps, limiter.positions)
            successor.steps_in_hand = limiter.steps_in_hand
            limiter = successor
        assert (
            limiter.room() >= steps
            or not limiter.may_insert(steps)
            or (limiter.steps_made < limits.prefill_agent_steps)
        )
    # the run ends: what is in hand comes in, and what is owed is trained
    limiter.inserted(limiter.steps_in_hand)
    limiter.steps_in_hand = 0
    while limiter.may_sample(limits.batch_positions):
        assert limiter.debt <= bound + limits.ratio * 64 or not limiter.may_insert(1)
        limiter.sampled(limits.batch_positions)
    if limiter.is_prefilled:
        assert -limits.slack_sample <= limiter.debt < limits.batch_positions
    assert limiter.forgiven == 0


def test_offline_updates_come_before_the_first_step_and_are_not_owed():
    limits = RateLimits(
        train_ratio=2,
        prefill_agent_steps=10,
        batch_positions=4,
        pretrain_updates=1,
        offline_updates=3,
        lead_share=0,
    )
    limiter = RateLimiter(limits)
    for _ in range(3):
        assert limiter.is_offline
        assert limiter.room() == 0
        assert not limiter.may_insert(1)
        assert limiter.may_sample(4)
        limiter.sampled(4)
    assert not limiter.is_offline
    assert not limiter.may_sample(4), "the prefill is not there"
    assert limiter.may_insert(10)
    limiter.inserted(10)
    assert limiter.debt == 4, "the pretraining alone"
    assert limiter.updates_due(10) == 4
    limiter.sampled(4)
    limiter.inserted(2)
    assert limiter.debt == 4
    assert limiter.actual_ratio == 0
    again = RateLimiter(limits)
    again.load(limiter.state())
    assert (again.debt, again.is_offline) == (4, False)


def test_what_workers_have_in_hand_counts_for_them_and_not_for_training():
    limits = RateLimits(
        train_ratio=1, prefill_agent_steps=0, batch_positions=4, max_insert_steps=4, lead_share=0
    )
    limiter = RateLimiter(limits)
    limiter.steps_in_hand = limiter.room()
    assert limiter.room() == 0
    assert limiter.steps_in_hand == limits.slack_insert
    assert not limiter.may_insert(1)
    assert not limiter.may_sample(4), "none of it is stored"
    limiter.steps_in_hand -= 4
    limiter.inserted(4)
    assert limiter.may_sample(4)


def test_a_run_that_is_stopped_in_its_pretraining_still_owes_the_rest():
    limits = RateLimits(
        train_ratio=384, prefill_agent_steps=1000, batch_positions=384, pretrain_updates=1000
    )
    limiter = RateLimiter(limits)
    limiter.rebase(1000, 100 * 384)
    assert limiter.debt == 900 * 384


@given(limits=LIMITS, steps=st.integers(0, 10**6), positions=st.integers(0, 10**6))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_state_survives_a_checkpoint(limits, steps, positions):
    limiter = RateLimiter(limits)
    loaded = RateLimiter(limits)
    limiter.rebase(steps, positions)
    loaded.load(limiter.state())
    assert (loaded.debt, loaded.agent_steps, loaded.positions) == (limiter.debt, steps, positions)
