"""The buffer against a naive twin: a list of rows per stream, searched by brute force."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import BufferError, ConfigurationError, ShapeMismatchError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import encode_rows, split_rows
from worldloom.data.selectors import Prioritised, Recency
from worldloom.data.sequence_buffer import SequenceBuffer

ENV = EnvSpec(
    name="counting", obs={"obs": ArraySpec((3,), "int64")}, action={"action": ArraySpec((1,))}
)
COLUMNS = ENV.columns({"latent": ArraySpec((2,), "uint16")})
CAMERA = ArraySpec((32, 32, 1), "uint8")


def counting_rows(stream, start, firsts, *, lasts=None):
    """Rows that say who they are: obs = (stream number, row number in the stream, episode-free)."""
    count = len(firsts)
    number = np.arange(start, start + count)
    rows = {name: spec.zeros(count) for name, spec in COLUMNS.items()}
    rows["obs"] = np.stack([np.full(count, stream), number, number % 256], axis=1)
    rows["reward"] = np.where(firsts, 0, number).astype(np.float32)
    rows["is_first"] = np.array(firsts, bool)
    if lasts is not None:
        rows["truncated"] = np.array(lasts, bool)
    return rows


class NaiveTwin:
    """Every row as a tuple, windows by brute force."""

    def __init__(self, capacity, window, cross, stride):
        self.capacity = capacity
        self.window = window
        self.cross = cross
        self.stride = stride
        self.rows = []  # (stream, number, is_first, chunk link: id of the predecessor row or None)
        self.places = []  # of each row in its unbroken run, or in its episode

    def append(self, stream, start, firsts, joined):
        previous = (
            max((i for i, row in enumerate(self.rows) if row[0] == stream), default=None)
            if joined
            else None
        )
        for offset, first in enumerate(firsts):
            begins = previous is None or (first and not self.cross)
            self.places.append(0 if begins else self.places[previous] + 1)
            self.rows.append((stream, start + offset, first, previous))
            previous = len(self.rows) - 1

    def starts(self):
        successor = {row[3]: i for i, row in enumerate(self.rows) if row[3] is not None}
        oldest = max(0, len(self.rows) - self.capacity)
        begins = [i for i in range(oldest, len(self.rows)) if self.places[i] % self.stride == 0]
        return {i: chain for i in begins if (chain := self._chain(i, successor)) is not None}

    def _chain(self, row, successor):
        chain = [row]
        while len(chain) < self.window:
            row = successor.get(row)
            if row is None or (self.rows[row][2] and not self.cross):
                return None
            chain.append(row)
        return chain


CHUNKS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.booleans(), min_size=1, max_size=9),
        st.sampled_from([0, 0, 0, 1]),
    ),
    min_size=1,
    max_size=25,
)


@given(
    chunks=CHUNKS,
    capacity=st.integers(11, 60),
    window=st.integers(1, 6),
    cross=st.booleans(),
    data=st.data(),
)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_buffer_equals_a_naive_twin(chunks, capacity, window, cross, data):
    stride = data.draw(st.integers(1, window))
    sampling = SamplingSpec(batch_size=1, length=window, cross_episodes=cross, stride=stride)
    buffer = SequenceBuffer(COLUMNS, sampling, capacity_rows=capacity)
    twin = NaiveTwin(capacity, window, cross, stride)
    seqs = [0, 0, 0]
    numbers = [0, 0, 0]
    appended = 0
    evicted = 0
    for stream, firsts, gap in chunks:
        seqs[stream] += gap
        rows = counting_rows(stream, numbers[stream], firsts)
        evicted += buffer.append(StreamId(stream, 0, 0), seqs[stream], rows)
        twin.append(stream, numbers[stream], firsts, joined=not gap)
        seqs[stream] += 1
        numbers[stream] += len(firsts)
        appended += len(firsts)
        assert len(buffer) == min(capacity, appended) == appended - evicted
        expected = twin.starts()
        assert buffer.num_windows == len(expected)
        if expected:
            check_windows(buffer, twin, expected)


def check_windows(buffer, twin, expected):
    windows = buffer.sample(20, np.random.default_rng(0))
    for ids, obs in zip(windows.row_ids, windows.columns["obs"], strict=True):
        assert ids.tolist() == expected[ids[0]]
        assert obs[:, :2].tolist() == [list(twin.rows[i][:2]) for i in ids]


def filled(
    *, sampling, capacity, chunk, episode=20, streams=2, rows=200, columns=COLUMNS, **kwargs
):
    buffer = SequenceBuffer(columns, sampling, capacity_rows=capacity, **kwargs)
    for start in range(0, rows, chunk):
        for stream in range(streams):
            firsts = [n % episode == 0 for n in range(start, min(rows, start + chunk))]
            buffer.append(
                StreamId(stream, 0, 0),
                start // chunk,
                counting_rows(stream, start, firsts),
                version=start // chunk,
            )
    return buffer


def test_sampling_is_uniform_over_window_starts_by_chi_square():
    buffer = filled(sampling=SamplingSpec(batch_size=1, length=4), capacity=250, chunk=7)
    starts = buffer.sample(30_000, np.random.default_rng(3)).row_ids[:, 0]
    counts = np.unique(starts, return_counts=True)[1]
    assert len(counts) == buffer.num_windows
    expected = 30_000 / len(counts)
    statistic = np.sum((counts - expected) ** 2 / expected)
    degrees = len(counts) - 1
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.72 * np.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("online", [False, True])
def test_one_stream_samples_the_same_windows_however_it_was_chunked(online):
    sampling = SamplingSpec(batch_size=1, length=5, online=online)
    a, b = (
        filled(sampling=sampling, capacity=120, chunk=chunk, streams=1).sample(
            40, np.random.default_rng(5)
        )
        for chunk in (1, 13)
    )
    np.testing.assert_array_equal(a.row_ids, b.row_ids)
    np.testing.assert_array_equal(a.columns["obs"], b.columns["obs"])


def test_episodes_shorter_than_a_window_are_never_sampled():
    buffer = filled(sampling=SamplingSpec(batch_size=1, length=6), capacity=500, chunk=8, episode=5)
    assert buffer.num_windows == 0
    with pytest.raises(BufferError, match="no 6 consecutive ones of one stream inside one episode"):
        buffer.sample(1, np.random.default_rng(0))


def test_a_gap_breaks_the_stream_and_closes_the_open_episode():
    buffer = SequenceBuffer(
        COLUMNS, SamplingSpec(batch_size=1, length=3, cross_episodes=True), capacity_rows=50
    )
    stream = StreamId(0, 0, 0)
    buffer.append(stream, 0, counting_rows(0, 0, [True, False, False]))
    buffer.append(stream, 2, counting_rows(0, 9, [False, False, False]))
    assert buffer.num_windows == 2
    windows = buffer.sample(50, np.random.default_rng(0))
    assert {tuple(row) for row in windows.columns["obs"][:, :, 1].tolist()} == {
        (0, 1, 2),
        (9, 10, 11),
    }
    of_first = windows.columns["obs"][:, 0, 1] == 0
    assert windows.columns["truncated"][of_first].tolist()[0] == [False, False, True]
    assert not windows.columns["truncated"][~of_first].any()


def test_a_late_chunk_is_kept_but_joined_to_nothing():
    buffer = SequenceBuffer(
        COLUMNS, SamplingSpec(batch_size=1, length=2, cross_episodes=True), capacity_rows=50
    )
    stream = StreamId(0, 0, 0)
    for seq, start in ((0, 0), (2, 6), (1, 3), (3, 9)):
        buffer.append(stream, seq, counting_rows(0, start, [False] * 3))
    pairs = buffer.sample(300, np.random.default_rng(0)).columns["obs"][:, :, 1]
    assert {tuple(p) for p in pairs.tolist()} == {
        (0, 1),
        (1, 2),
        (6, 7),
        (7, 8),
        (8, 9),
        (3, 4),
        (4, 5),
        (9, 10),
        (10, 11),
    }


@pytest.mark.parametrize("split", [False, True])
def test_an_episode_that_a_crash_cut_off_ends_as_truncated_when_the_next_one_begins(split):
    buffer = SequenceBuffer(
        COLUMNS, SamplingSpec(batch_size=1, length=4, cross_episodes=True), capacity_rows=50
    )
    firsts = [True, False, True, False]
    if split:
        buffer.append(StreamId(0, 0, 0), 0, counting_rows(0, 0, firsts[:2]))
        buffer.append(StreamId(0, 0, 0), 1, counting_rows(0, 2, firsts[2:]))
    else:
        buffer.append(StreamId(0, 0, 0), 0, counting_rows(0, 0, firsts))
    window = buffer.sample(1, np.random.default_rng(0)).columns
    assert window["truncated"][0].tolist() == [False, True, False, False]
    assert not window["terminated"].any()


def test_a_slow_stream_goes_on_after_its_older_rows_were_evicted():
    buffer = SequenceBuffer(COLUMNS, SamplingSpec(batch_size=1, length=3), capacity_rows=10)
    buffer.append(StreamId(0, 0, 0), 0, counting_rows(0, 0, [True, False]))
    buffer.append(StreamId(1, 0, 0), 0, counting_rows(1, 0, [True] * 9))
    assert (len(buffer), buffer.num_windows) == (10, 0)
    buffer.append(StreamId(0, 0, 0), 1, counting_rows(0, 2, [False]))
    assert buffer.num_windows == 0
    buffer.append(StreamId(0, 0, 0), 2, counting_rows(0, 3, [False, False]))
    assert (
        buffer.sample(20, np.random.default_rng(0)).columns["obs"][:, :, 1].tolist()
        == [[2, 3, 4]] * 20
    )


def test_a_terminated_row_is_never_made_truncated():
    buffer = SequenceBuffer(
        COLUMNS, SamplingSpec(batch_size=1, length=3, cross_episodes=True), capacity_rows=50
    )
    rows = counting_rows(0, 0, [True, False, True])
    rows["terminated"][1] = True
    buffer.append(StreamId(0, 0, 0), 0, rows)
    assert not buffer.sample(1, np.random.default_rng(0)).columns["truncated"].any()


def test_images_stay_compressed_and_come_back_as_they_were():
    columns = EnvSpec(
        name="x", obs={"camera": CAMERA}, action={"action": ArraySpec((1,))}
    ).columns()
    sampling = SamplingSpec(batch_size=1, length=11, cross_episodes=True)
    buffers = {
        "packed": SequenceBuffer(columns, sampling, capacity_rows=70),
        "plain": SequenceBuffer(columns, sampling, capacity_rows=70, encoded=()),
    }
    for start in range(0, 120, 8):
        rows = {name: spec.zeros(8) for name, spec in columns.items()}
        rows["obs/camera"] += np.arange(start, start + 8, dtype=np.uint8)[:, None, None, None]
        for buffer in buffers.values():
            buffer.append(StreamId(0, 0, 0), start // 8, split_rows(encode_rows(rows), columns))
    assert buffers["packed"].nbytes < buffers["plain"].nbytes / 10
    samples = [buffer.sample(30, np.random.default_rng(0)) for buffer in buffers.values()]
    np.testing.assert_array_equal(
        samples[0].columns["obs/camera"], samples[1].columns["obs/camera"]
    )
    np.testing.assert_array_equal(
        samples[0].columns["obs/camera"][:, :, 5, 5, 0], samples[0].row_ids
    )


def test_unencoded_images_are_accepted_too():
    columns = EnvSpec(
        name="x", obs={"camera": CAMERA}, action={"action": ArraySpec((1,))}
    ).columns()
    buffer = SequenceBuffer(columns, SamplingSpec(batch_size=1, length=2), capacity_rows=20)
    buffer.append(
        StreamId(0, 0, 0),
        0,
        {name: spec.zeros(4) + (name == "obs/camera") for name, spec in columns.items()},
    )
    assert (buffer.sample(2, np.random.default_rng(0)).columns["obs/camera"] == 1).all()


def test_a_byte_budget_evicts_the_oldest_chunks():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=2),
        capacity=400,
        chunk=10,
        capacity_bytes=5_000,
        streams=1,
    )
    assert 3_000 < buffer.nbytes <= 5_000
    assert len(buffer) < 200
    assert buffer.sample(100, np.random.default_rng(0)).row_ids.min() >= buffer.next_row - len(
        buffer
    )


def test_versions_and_ages_belong_to_the_first_trained_row():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=3, context=2, cross_episodes=True),
        capacity=100,
        chunk=6,
        streams=1,
    )
    windows = buffer.sample(50, np.random.default_rng(0))
    np.testing.assert_array_equal(windows.versions, windows.row_ids[:, 2] // 6)


def test_refreshed_latents_are_read_back_and_late_ones_rejected():
    sampling = SamplingSpec(batch_size=1, length=4)
    buffer = filled(sampling=sampling, capacity=50, chunk=5, rows=40, streams=1, mutable={"latent"})
    windows = buffer.sample(8, np.random.default_rng(0))
    fresh = np.stack([windows.row_ids, windows.row_ids + 1], axis=2).astype(np.uint16)
    assert buffer.write_back(windows.row_ids, {"latent": fresh}) == (32, 0)
    again = buffer.sample(8, np.random.default_rng(0))
    np.testing.assert_array_equal(again.columns["latent"], fresh)
    for seq in range(8, 18):
        buffer.append(StreamId(0, 0, 0), seq, counting_rows(0, seq * 5, [False] * 5))
    assert buffer.write_back(windows.row_ids, {"latent": fresh}) == (0, 32)
    assert not buffer.export_mutable()[1]["latent"].any()


def test_only_mutable_columns_are_written_back():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=4), capacity=50, chunk=5, mutable={"latent"}
    )
    with pytest.raises(ShapeMismatchError, match="reward"):
        buffer.write_back(np.zeros((1, 4), np.int64), {"reward": np.zeros((1, 4), np.float32)})


def test_the_online_queue_serves_each_new_window_once_and_skips_what_was_evicted():
    sampling = SamplingSpec(batch_size=1, length=5, cross_episodes=True, online=True)
    buffer = filled(sampling=sampling, capacity=40, chunk=4, rows=60, streams=1)
    first = buffer.sample(8, np.random.default_rng(0)).row_ids[:, 0]
    assert first.tolist() == [20, 25, 30, 35, 40, 45, 50, 55]
    assert (buffer.online_queued, buffer.online_served) == (12, 12)
    buffer.append(StreamId(0, 0, 0), 15, counting_rows(0, 60, [False] * 7))
    later = buffer.sample(2000, np.random.default_rng(1)).row_ids[:, 0]
    assert later[0] == 60
    assert len(set(later[1:].tolist())) == buffer.num_windows


def test_lost_rows_leave_a_hole_that_is_evicted_like_rows():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=2),
        capacity=60,
        chunk=10,
        rows=30,
        streams=1,
        mutable={"latent"},
    )
    buffer.skip(20)
    assert (len(buffer), buffer.next_row) == (30, 50)
    assert buffer.write_back(np.array([29, 30, 49]), {"latent": np.zeros((3, 2), np.uint16)}) == (
        1,
        2,
    )
    evicted = buffer.append(StreamId(1, 0, 0), 0, counting_rows(1, 0, [False] * 40))
    assert (len(buffer), evicted) == (40, 30)
    assert buffer.sample(200, np.random.default_rng(0)).row_ids.min() == 50


def test_losing_more_rows_than_fit_empties_the_buffer_and_ids_go_on():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=2), capacity=30, chunk=10, rows=30, streams=1
    )
    buffer.skip(1000)
    assert (len(buffer), buffer.num_windows, buffer.next_row) == (0, 0, 1030)
    buffer.append(StreamId(1, 0, 0), 0, counting_rows(1, 0, [False] * 5))
    assert len(buffer) == 5
    assert buffer.sample(9, np.random.default_rng(0)).row_ids.min() >= 1030


@pytest.mark.parametrize("make", [Recency, Prioritised])
def test_every_selector_draws_valid_windows_only(make):
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=4), capacity=130, chunk=9, selector=make(130)
    )
    windows = buffer.sample(500, np.random.default_rng(0))
    assert (np.diff(windows.columns["obs"][:, :, 1], axis=1) == 1).all()
    assert not windows.columns["is_first"][:, 1:].any()


def test_priorities_of_evicted_windows_are_counted_as_rejected():
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=4),
        capacity=100,
        chunk=10,
        streams=1,
        selector=Prioritised(100, 1.0),
    )
    assert buffer.update_priorities(np.array([0, 119, 120, 130]), np.full(4, 1e9)) == (2, 2)
    assert set(buffer.sample(100, np.random.default_rng(0)).row_ids[:, 0].tolist()) == {120, 130}


def test_evicting_while_others_sample_never_shows_a_wrong_window():
    obs = {"number": ArraySpec((), "int64"), "camera": CAMERA}
    columns = EnvSpec(name="x", obs=obs, action={"action": ArraySpec((1,))}).columns()
    buffer = SequenceBuffer(columns, SamplingSpec(batch_size=8, length=6), capacity_rows=90)
    lock = threading.Lock()
    done = threading.Event()
    wrong = []

    def put(seq):
        rows = {name: spec.zeros(10) for name, spec in columns.items()}
        rows["obs/number"] += np.arange(seq * 10, seq * 10 + 10)
        rows["obs/camera"] += rows["obs/number"].astype(np.uint8)[:, None, None, None]
        packed = split_rows(encode_rows(rows), columns)
        with lock:
            buffer.append(StreamId(0, 0, 0), seq, packed)

    def read(seed):
        rng = np.random.default_rng(seed)
        while not done.is_set():
            with lock:
                pending = buffer.draw([(8, rng)])
            windows = pending.decode()
            numbers = windows.columns["obs/number"]
            if (numbers != windows.row_ids).any() or (
                windows.columns["obs/camera"][..., 0, 0, 0] != numbers % 256
            ).any():
                wrong.append(numbers)

    put(0)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for seq in range(1, 120):
        put(seq)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("rows", [1, 2, 13])
def test_windows_of_the_callers_choice_follow_the_stream_whatever_their_length(rows):
    buffer = filled(
        sampling=SamplingSpec(batch_size=1, length=4, context=2), capacity=200, chunk=5, rows=60
    )
    starts = np.array([0, 3, 41, 60])
    windows = buffer.windows_at(starts, rows).decode()
    assert windows.row_ids[:, 0].tolist() == starts.tolist()
    obs = windows.columns["obs"]
    assert (np.diff(obs[..., 1], axis=1) == 1).all()
    assert (obs[..., 0] == obs[:, :1, 0]).all()


def test_a_capacity_below_one_window_is_refused():
    with pytest.raises(ConfigurationError, match="window, so 8 rows, got 7"):
        SequenceBuffer(COLUMNS, SamplingSpec(batch_size=1, length=8), capacity_rows=7)


def test_a_chunk_above_the_capacity_is_refused():
    buffer = SequenceBuffer(COLUMNS, SamplingSpec(batch_size=1, length=2), capacity_rows=5)
    with pytest.raises(BufferError, match="6 rows does not fit"):
        buffer.append(StreamId(0, 0, 0), 0, counting_rows(0, 0, [False] * 6))


def test_rows_of_another_layout_change_nothing():
    buffer = SequenceBuffer(COLUMNS, SamplingSpec(batch_size=1, length=2), capacity_rows=5)
    rows = counting_rows(0, 0, [False] * 3)
    with pytest.raises(ShapeMismatchError, match="reward"):
        buffer.append(StreamId(0, 0, 0), 0, rows | {"reward": np.zeros(2, np.float32)})
    with pytest.raises(ShapeMismatchError, match="columns"):
        buffer.append(StreamId(0, 0, 0), 0, rows | {"other": np.zeros(3)})
    assert (len(buffer), buffer.streams()) == (0, {})
