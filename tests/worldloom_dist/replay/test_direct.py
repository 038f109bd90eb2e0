import threading

import numpy as np
import pytest

from worldloom.core.exceptions import BufferError, StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom.data.rate_limiter import RateLimits
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.replay.shard import ReplayShard

ENV = EnvSpec(
    name="counting", obs={"obs": ArraySpec((2,), "int64")}, action={"action": ArraySpec((1,))}
)
COLUMNS = ENV.columns({"latent": ArraySpec((2,), "uint16")})
SAMPLING = SamplingSpec(batch_size=8, length=4, context=1, cross_episodes=True)


def counting_chunk(slot, seq, size=10):
    rows = {name: spec.zeros(size) for name, spec in COLUMNS.items()}
    rows["obs"] = np.stack([np.full(size, slot), np.arange(seq * size, (seq + 1) * size)], axis=1)
    rows["is_first"][0] = seq == 0
    return make_chunk(StreamId(slot, 0, 0), seq, NO_POLICY, rows)


def open_replay(directory, *, shards=2, wait_s=0.0, is_lockstep=False, capacity=2000, **limits):
    settings = {
        "train_ratio": 3.2,
        "prefill_agent_steps": 40,
        "batch_positions": 32,
        "max_insert_steps": 10,
    } | limits
    coordinator = ReplayCoordinator(RateLimits(**settings), window_positions=SAMPLING.length)
    parts = [
        ReplayShard(
            i, COLUMNS, SAMPLING, capacity_rows=capacity, directory=directory / f"shard-{i}"
        )
        for i in range(shards)
    ]
    return DirectReplay(parts, coordinator, wait_s=wait_s, is_lockstep=is_lockstep)


def check(windows):
    obs = windows.columns["obs"]
    assert (np.diff(obs[..., 1], axis=1) == 1).all()
    assert (obs[..., 0] == obs[:, :1, 0]).all()
    np.testing.assert_array_equal(windows.shard, obs[:, 0, 0] % 2)


def test_lock_step_runs_on_the_schedule_and_keeps_the_ratio_to_the_unit(tmp_path):
    replay = open_replay(tmp_path, pretrain_updates=3)
    updates = 0
    for seq in range(20):
        for slot in range(3):
            replay.append(counting_chunk(slot, seq))
            due = replay.coordinator.limiter.updates_due(replay.coordinator.limiter.agent_steps)
            for update in range(updates, due):
                check(replay.sample(SampleRequest(8, (1, update))))
            updates = due
    steps = 3 * (20 * 10 - 1)
    assert updates == 3 + (steps - 40) * 32 // 320
    assert replay.row_counters().inserted == 600
    assert replay.coordinator.limiter.agent_steps == steps == replay.row_counters().agent_steps


def test_two_runs_with_one_seed_sample_the_same_windows(tmp_path):
    replays = [open_replay(tmp_path / name) for name in "ab"]
    for replay in replays:
        for seq in range(3):
            for slot in (0, 1):
                replay.append(counting_chunk(slot, seq))
    a, b = (replay.sample(SampleRequest(8, (5,))) for replay in replays)
    np.testing.assert_array_equal(a.row_ids, b.row_ids)
    np.testing.assert_array_equal(a.shard, b.shard)
    assert set(a.shard.tolist()) == {0, 1}


def test_a_chunk_that_comes_twice_counts_once_on_both_sides(tmp_path):
    replay = open_replay(tmp_path)
    replay.append(counting_chunk(0, 0))
    replay.append(counting_chunk(0, 0))
    assert (replay.row_counters().inserted, replay.row_counters().duplicate) == (10, 10)
    assert replay.coordinator.limiter.agent_steps == 9


def test_a_call_that_nobody_can_unblock_fails_with_the_numbers(tmp_path):
    replay = open_replay(tmp_path)
    with pytest.raises(BufferError, match="0 rows but no complete window"):
        replay.sample(SampleRequest(8, (0,)))
    for seq in range(2):
        replay.append(counting_chunk(0, seq))
    with pytest.raises(StateError, match="blocks this sample: 21 agent steps must be inserted"):
        replay.sample(SampleRequest(8, (0,)))
    seq = 2
    while replay.coordinator.limiter.may_insert(10):
        replay.append(counting_chunk(0, seq))
        seq += 1
    with pytest.raises(StateError, match=r"blocks this insert: \d+ positions must be trained"):
        replay.append(counting_chunk(0, seq))
    assert replay.row_counters().stored == replay.coordinator.limiter.agent_steps + 1 == seq * 10


def test_lock_step_counts_inserts_beyond_the_band_and_samples_by_it(tmp_path):
    replay = open_replay(tmp_path, is_lockstep=True, lead_share=0.0)
    for seq in range(50):
        replay.append(counting_chunk(0, seq))
    limiter = replay.coordinator.limiter
    samples = 0
    assert limiter.agent_steps == 499
    assert not limiter.may_insert(10)
    while limiter.may_sample(32):
        replay.sample(SampleRequest(8, (samples,)))
        samples += 1
    assert samples == limiter.updates_due(499) == (499 - 40) * 32 // 320


def test_refreshed_latents_reach_the_last_rows_of_their_windows(tmp_path):
    replay = open_replay(tmp_path)
    for slot in (0, 1):
        for seq in range(3):
            replay.append(counting_chunk(slot, seq))
    windows = replay.sample(SampleRequest(8, (2,)))
    tag = (windows.shard[:, None] * 1000 + windows.row_ids[:, 1:] + 1).astype(np.uint16)
    replay.write_back(windows, {"latent": np.stack([tag, tag], axis=2)})
    assert tuple(replay.written_back) == (32, 0)
    again = replay.sample(SampleRequest(8, (2,)))
    np.testing.assert_array_equal(again.columns["latent"][:, 1:, 0], tag)


def test_latents_of_rows_that_were_evicted_meanwhile_are_rejected_and_counted(tmp_path):
    replay = open_replay(tmp_path, is_lockstep=True, lead_share=0.0, shards=1, capacity=60)
    for seq in range(6):
        replay.append(counting_chunk(0, seq))
    windows = replay.sample(SampleRequest(8, (2,)))
    for seq in range(6, 9):  # the older half makes room
        replay.append(counting_chunk(0, seq))
    gone = int((windows.row_ids[:, 1:] < 30).sum())
    assert 0 < gone < 32
    replay.write_back(windows, {"latent": np.ones((8, 4, 2), np.uint16)})
    assert replay.drain_written_back() == replay.written_back == (32 - gone, gone)
    values = replay.written_back.to_metrics()
    assert {key: metric.value for key, metric in values.items()} == {
        "replay_refreshed_steps_total{outcome=applied}": 32 - gone,
        "replay_refreshed_steps_total{outcome=rejected}": gone,
    }
    assert not any(replay.drain_written_back())
    assert replay.drain_written_back().to_metrics() == {}


def test_a_rolled_back_run_goes_on_as_if_nothing_had_happened(tmp_path):
    def go_on(replay):
        for seq in range(3, 8):
            for slot in (0, 1):
                replay.append(counting_chunk(slot, seq))
        return replay.sample(SampleRequest(8, (9,)))

    replay = open_replay(tmp_path, train_ratio=0.1)
    for seq in range(3):
        for slot in (0, 1):
            replay.append(counting_chunk(slot, seq))
    snapshots = replay.snapshot()
    state = replay.coordinator.limiter.state()
    first = go_on(replay)
    replay.rollback(snapshots)
    replay.coordinator.limiter.load(state)
    assert replay.coordinator.limiter.agent_steps == replay.row_counters().agent_steps == 58
    second = go_on(replay)
    np.testing.assert_array_equal(first.row_ids, second.row_ids)
    np.testing.assert_array_equal(first.columns["obs"], second.columns["obs"])


def test_threads_wait_for_each_other_and_the_band_holds_to_the_end(tmp_path):
    replay = open_replay(tmp_path, wait_s=10.0)
    errors = []
    limits = replay.coordinator.limiter.limits
    updates = replay.coordinator.limiter.updates_due(4 * 399)

    def guarded(work):
        try:
            work()
        except (StateError, AssertionError) as error:
            errors.append(error)

    def write(slot):
        for seq in range(40):
            replay.append(counting_chunk(slot, seq))

    def train():
        for update in range(updates):
            check(replay.sample(SampleRequest(8, (update,))))

    writers = [
        threading.Thread(target=guarded, args=(lambda slot=slot: write(slot),)) for slot in range(4)
    ]
    learner = threading.Thread(target=guarded, args=(train,))
    for thread in [*writers, learner]:
        thread.start()
    for thread in [*writers, learner]:
        thread.join()
    assert not errors
    assert replay.row_counters().inserted == 1600
    assert -limits.slack_sample <= replay.coordinator.limiter.debt <= limits.slack_insert
    assert replay.coordinator.limiter.positions == updates * 32
