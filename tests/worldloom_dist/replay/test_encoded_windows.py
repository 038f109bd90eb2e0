"""Images that compress leave a shard encoded, and come out as if the shard had decoded them."""

import pickle

import numpy as np
import pytest

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.shard import ReplayShard

COLUMNS = EnvSpec(
    name="x", obs={"obs": ArraySpec((32, 32, 3), "uint8")}, action={"action": ArraySpec((1,))}
).columns()
SAMPLING = SamplingSpec(batch_size=4, length=5, cross_episodes=True)
REQUEST = SampleRequest(4, (3, 1))


def filled_shard(make_frames, folder=None, **kwargs):
    kept = {"directory": folder} if folder else {"durability": "none"}
    shard = ReplayShard(2, COLUMNS, SAMPLING, capacity_rows=60, **kept, **kwargs)
    for seq in range(10):
        rows = {name: spec.zeros(8) for name, spec in COLUMNS.items()}
        rows["obs"] = make_frames(8 * seq)
        shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, rows))
    return shard


def flat_frames(first):
    return np.repeat(np.arange(first, first + 8, dtype=np.uint8), 32 * 32 * 3).reshape(8, 32, 32, 3)


def noise_frames(first):
    return np.random.default_rng(first).integers(0, 256, (8, 32, 32, 3), np.uint8)


def assert_same(one, other):
    assert set(one.columns) == set(other.columns)
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name])
    for name in ("row_ids", "shard", "versions", "inserted_s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("ram_bytes", [None, 1], ids=["in memory", "read from disk"])
def test_frames_that_compress_travel_encoded_and_come_out_as_sampled(tmp_path, ram_bytes, protocol):
    shard = filled_shard(flat_frames, tmp_path, ram_bytes=ram_bytes)
    given = shard.draw([REQUEST]).prepared()
    expected = shard.sample(REQUEST)
    sent = pickle.dumps(given, protocol)
    shard.close()
    assert not given.is_whole
    assert len(sent) < expected.nbytes / 4
    assert given.nbytes < expected.nbytes / 4
    assert_same(pickle.loads(sent).decode(), expected)
    assert (expected.columns["obs"][..., 0, 0, 0] == expected.row_ids).all()


@pytest.mark.parametrize("ram_bytes", [None, 1], ids=["in memory", "read from disk"])
def test_noise_travels_as_the_stored_rows_that_are_wanted(tmp_path, ram_bytes):
    shard = filled_shard(noise_frames, tmp_path, ram_bytes=ram_bytes)
    given = shard.draw([REQUEST]).prepared()
    expected = shard.sample(REQUEST)
    sent = pickle.dumps(given, 5)
    shard.close()
    assert not given.is_whole
    assert given.nbytes <= expected.nbytes, (
        "no row travels that is in no window, and one in two windows travels once"
    )
    assert_same(pickle.loads(sent).decode(), expected)
    assert_same(given.decode(), expected)


def half_noise_frames(first):
    frames = noise_frames(first)
    frames[:, 16:] = 0
    return frames


def test_chunks_that_are_hardly_smaller_than_their_windows_are_decoded_by_the_shard():
    shard = filled_shard(half_noise_frames)
    given = shard.draw([REQUEST]).prepared()
    assert given.is_whole
    assert_same(given.decode(), shard.sample(REQUEST))


def test_rows_without_images_travel_as_they_are():
    columns = EnvSpec(
        name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))}
    ).columns()
    shard = ReplayShard(0, columns, SAMPLING, capacity_rows=60, durability="none")
    shard.append(
        make_chunk(
            StreamId(0, 0, 0),
            0,
            NO_POLICY,
            {name: spec.zeros(20) for name, spec in columns.items()},
        )
    )
    assert shard.draw([REQUEST]).prepared().is_whole


@pytest.mark.parametrize("make_frames", [flat_frames, noise_frames], ids=["compressed", "raw"])
def test_the_windows_of_several_requests_are_those_of_each_one_after_the_other(make_frames):
    shard = filled_shard(make_frames)
    requests = [SampleRequest(3, (1,)), SampleRequest(2, (2,)), SampleRequest(4, (3,))]
    given = pickle.loads(pickle.dumps(shard.draw(requests).prepared(), 5))
    first = 0
    for request in requests:
        assert_same(given.part(first, first + request.windows).decode(), shard.sample(request))
        first += request.windows


def test_what_is_ready_at_once_is_what_needs_no_reading_and_no_decoding(tmp_path):
    given = filled_shard(flat_frames).draw([REQUEST]).ready()
    assert given is not None
    assert not given.is_whole
    assert filled_shard(half_noise_frames).draw([REQUEST]).ready() is None
    shard = filled_shard(flat_frames, tmp_path, ram_bytes=1)
    assert shard.draw([REQUEST]).ready() is None
    shard.close()


@pytest.mark.parametrize(
    "kinds", ["pp", "pwp", "ww", "p", "w"], ids=lambda kinds: f"{kinds}: packed or whole"
)
def test_windows_of_several_shards_are_decoded_in_place_as_if_glued(kinds):
    requests = [SampleRequest(2 + number, (number,)) for number in range(len(kinds))]
    shards = [filled_shard(flat_frames if kind == "p" else noise_frames) for kind in kinds]
    drawn = [shard.draw([request]) for shard, request in zip(shards, requests, strict=True)]
    given = [
        part if kind == "p" else EncodedWindows(part.decode())
        for kind, part in zip(kinds, drawn, strict=True)
    ]
    expected = SampledWindows.concatenate(
        [shard.sample(request) for shard, request in zip(shards, requests, strict=True)]
    )
    found = EncodedWindows.concatenate(given).decode()
    assert_same(found, expected)
    assert found.columns["obs"].flags.c_contiguous
