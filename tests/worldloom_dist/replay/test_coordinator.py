import numpy as np
import pytest

from worldloom.core.sequence import StreamId
from worldloom.data.offline_share import OfflineShare
from worldloom.data.rate_limiter import RateLimits
from worldloom_dist.ports import RowCounters, SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator, shard_of

LIMITS = RateLimits(train_ratio=2, prefill_agent_steps=100, batch_positions=40, max_insert_steps=10)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def coordinator_with(windows, *, steps=0, limits=LIMITS, **kwargs):
    coordinator = ReplayCoordinator(limits, window_positions=4, **kwargs)
    for index, count in enumerate(windows):
        coordinator.join(index, RowCounters(agent_steps=steps), count)
    return coordinator


def split(coordinator, n):
    parts = coordinator.try_sample(SampleRequest(10, (n,)))
    coordinator.limiter.sampled(-10 * coordinator.window_positions)  # as if it had not been
    return {index: part.windows for index, part in parts.items()}


def test_samples_are_split_in_proportion_to_live_windows():
    coordinator = coordinator_with([100, 300, 0], steps=100)
    totals = np.zeros(3)
    for n in range(600):
        parts = split(coordinator, n)
        assert sum(parts.values()) == 10
        for index, count in parts.items():
            totals[index] += count
    assert totals[2] == 0
    share = totals[1] / totals.sum()
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 6000)


def test_the_split_depends_on_the_seed_only_and_shards_get_seeds_of_their_own():
    a, b = (
        coordinator_with([50, 50], steps=100).try_sample(SampleRequest(10, (7, 3)))
        for _ in range(2)
    )
    assert a == b
    seeds = [part.seed for part in a.values()]
    streams = {np.random.default_rng(list(seed)).integers(1 << 60) for seed in [*seeds, (7, 3)]}
    assert len(streams) == 3


def test_a_shard_that_leaves_is_not_sampled_until_it_joins_again():
    coordinator = coordinator_with([50, 50], steps=100)
    coordinator.leave(0)
    assert coordinator.live_shards == [1]
    assert {tuple(split(coordinator, n)) for n in range(20)} == {(1,)}
    coordinator.join(0, RowCounters(agent_steps=100), 50)
    assert any(0 in split(coordinator, n) for n in range(20))
    assert coordinator.limiter.agent_steps == 200


def test_permits_of_a_dead_shard_are_void_when_it_returns():
    coordinator = coordinator_with([0, 0])
    assert coordinator.try_insert(0, 10)
    assert coordinator.try_insert(0, 10)
    assert coordinator.limiter.agent_steps == 20
    coordinator.leave(0)
    coordinator.join(0, RowCounters(agent_steps=10), 5)
    assert coordinator.limiter.agent_steps == 10


def test_steps_given_back_are_not_counted():
    coordinator = coordinator_with([1])
    assert coordinator.try_insert(0, 10)
    coordinator.give_back(0, 4)
    assert coordinator.limiter.agent_steps == 6


def test_the_limits_hold_over_all_shards_together():
    coordinator = coordinator_with([50, 50], steps=50)
    inserted = 0
    while coordinator.try_insert(inserted % 2, 10):
        inserted += 1
    assert 2 * 10 * inserted <= LIMITS.slack_insert < 2 * 10 * (inserted + 1)
    sampled = 0
    while coordinator.try_sample(SampleRequest(10, (sampled,))):
        sampled += 1
    assert 40 * (sampled + 1) - 20 * inserted > LIMITS.slack_sample
    assert coordinator.try_insert(0, 10)


def test_nothing_stored_blocks_sampling_without_counting_it():
    coordinator = coordinator_with([0, 0], steps=100)
    assert coordinator.try_sample(SampleRequest(1, (0,))) is None
    assert coordinator.limiter.positions == 0


def test_inserts_are_never_blocked_while_no_window_is_complete():
    coordinator = coordinator_with([0, 0], steps=50)
    for _ in range(100):
        assert coordinator.try_insert(0, 10)
    coordinator.report(0, 1)
    assert not coordinator.try_insert(0, 10)
    coordinator.leave(0)
    assert coordinator.try_insert(1, 10)


def test_blocked_seconds_run_from_a_refusal_to_the_next_permit():
    clock = Clock()
    coordinator = coordinator_with([10], clock=clock)
    assert coordinator.try_sample(SampleRequest(1, (0,))) is None
    clock.now = 3.0
    assert coordinator.sample_blocked_s == 3.0
    assert coordinator.try_insert(0, 10)
    for _ in range(9):
        coordinator.try_insert(0, 10)
    assert coordinator.try_sample(SampleRequest(1, (0,))) is not None
    clock.now = 9.0
    assert (coordinator.sample_blocked_s, coordinator.insert_blocked_s) == (3.0, 0.0)


def test_a_rebuilt_coordinator_knows_what_the_shards_and_the_learner_know():
    coordinator = coordinator_with([1])
    coordinator.rebuild(
        {0: (RowCounters(agent_steps=300), 70), 1: (RowCounters(agent_steps=200), 30)},
        positions=790,
    )
    assert (coordinator.limiter.agent_steps, coordinator.limiter.positions) == (500, 790)
    assert coordinator.limiter.debt == 2 * 400 - 790
    coordinator.rebuild({0: (RowCounters(agent_steps=5000), 70)}, positions=790)
    assert coordinator.limiter.debt == 2 * 4900 - 790, "nothing is forgiven"


def test_what_would_unblock_is_named_in_the_other_sides_unit():
    limiter = coordinator_with([10], steps=0).limiter
    assert limiter.sample_waits_for(40) == 100
    limiter.inserted(100)
    limiter.sampled(40)
    assert limiter.sample_waits_for(40) == (80 - LIMITS.slack_sample) / 2
    limiter.inserted(80)
    waits = limiter.insert_waits_for(10)
    assert waits > 0
    limiter.sampled(waits - 1)
    assert not limiter.may_insert(10)
    limiter.sampled(1)
    assert limiter.may_insert(10)


def test_the_actual_ratio_leaves_prefill_and_pretraining_out():
    limits = RateLimits(
        train_ratio=2, prefill_agent_steps=100, batch_positions=40, pretrain_updates=5
    )
    limiter = coordinator_with([1], limits=limits).limiter
    assert np.isnan(limiter.actual_ratio)
    limiter.inserted(150)
    limiter.sampled(200 + 90)
    assert limiter.actual_ratio == pytest.approx(90 / 50)


def test_slots_are_dealt_out_evenly_and_for_ever():
    owners = [
        shard_of(StreamId(slot, incarnation, 0), 3) for incarnation in (0, 5) for slot in range(9)
    ]
    assert owners == [0, 1, 2] * 6


def test_as_many_batches_are_permitted_at_once_as_are_owed_and_who_got_some_is_not_blocked():
    clock = Clock()
    coordinator = coordinator_with([50, 50], steps=100, clock=clock)
    requests = [SampleRequest(10, (n,)) for n in range(50)]
    permitted = coordinator.try_samples(requests)
    alone = coordinator_with([50, 50], steps=100)
    expected = []
    while (one := alone.try_sample(requests[len(expected)])) is not None:
        expected.append(one)
    assert permitted == expected
    assert 1 < len(permitted) < 50
    clock.now = 5.0
    assert coordinator.sample_blocked_s == 0.0
    assert coordinator.try_samples(requests[len(permitted) :]) == []
    clock.now = 7.0
    assert coordinator.sample_blocked_s == 2.0


def test_a_share_of_each_batch_is_dealt_to_shards_by_their_windows_of_files_and_of_the_run():
    limits = RateLimits(train_ratio=1, prefill_agent_steps=0, batch_positions=8)
    share = OfflineShare(0.75, 0.25, until_env_steps=100)
    coordinator = ReplayCoordinator(limits, window_positions=1, share=share)
    for shard, (windows, files) in enumerate(((100, 90), (50, 0), (10, 10))):
        coordinator.join(shard, RowCounters(), windows)
        coordinator.report(shard, windows, files)
    dealt = np.zeros((3, 2), int)
    for seed in range(500):
        coordinator.limiter.agent_steps = 1000 if seed >= 250 else 0
        coordinator.limiter.positions = 0
        parts = coordinator.try_sample(SampleRequest(8, (seed,)))
        assert sum(part.windows for part in parts.values()) == 8
        assert sum(part.files for part in parts.values()) == (2 if seed >= 250 else 6)
        assert parts == coordinator.try_sample(SampleRequest(8, (seed,))), "a seed fixes it"
        for shard, part in parts.items():
            dealt[shard] += part.windows - part.files, part.files
    assert dealt[1, 1] == dealt[2, 0] == 0
    assert dealt[0, 1] / dealt[:, 1].sum() == pytest.approx(0.9, abs=0.03)
    assert dealt[1, 0] / dealt[:, 0].sum() == pytest.approx(50 / 60, abs=0.03)


def test_a_share_gives_way_where_nothing_of_one_kind_is_stored():
    limits = RateLimits(train_ratio=1, prefill_agent_steps=0, batch_positions=8)
    share = OfflineShare(0.5, 0.5)
    for files, wanted in ((0, 0), (20, 8)):
        coordinator = ReplayCoordinator(limits, window_positions=1, share=share)
        coordinator.join(0, RowCounters(), 20)
        coordinator.report(0, 20, files)
        coordinator.limiter.inserted(100)
        assert coordinator.try_sample(SampleRequest(8, (1,)))[0].files == wanted


def test_more_windows_of_files_than_windows_are_no_negative_windows_of_the_run():
    limits = RateLimits(train_ratio=1, prefill_agent_steps=0, batch_positions=8)
    share = OfflineShare(0.5, 0.5)
    coordinator = ReplayCoordinator(limits, window_positions=1, share=share)
    for shard, (windows, files) in enumerate(((64, 128), (200, 0))):
        coordinator.join(shard, RowCounters(), windows)
        coordinator.report(shard, windows, files)
    coordinator.limiter.inserted(100)
    parts = coordinator.try_sample(SampleRequest(8, (1,)))
    assert {index: (part.windows, part.files) for index, part in parts.items()} == {
        0: (4, 4),
        1: (4, 0),
    }
