"""What travels over a line comes out as it went in, however it is cut on the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom_dist.rpc.frames import (
    HEAD,
    LARGE_BUFFER,
    LARGEST_FRAME,
    ROOM,
    FrameReader,
    content_of,
    pieces_of,
)


def received(stream: bytes, cuts: list[int]) -> list[tuple[int, bytes | bytearray]]:
    """What a reader makes of bytes that come in parts of this size at most."""
    frames: list[tuple[int, bytes | bytearray]] = []
    reader = FrameReader(lambda number, body: frames.append((number, body)))
    position = 0
    turn = 0
    while position < len(stream):
        room = reader.free()
        count = min(cuts[turn % len(cuts)], len(room), len(stream) - position)
        room[:count] = stream[position : position + count]
        reader.arrived(count)
        position = position + count
        turn = turn + 1
    return frames


SIZES = st.sampled_from([0, 1, 100, LARGE_BUFFER - 1, LARGE_BUFFER, ROOM - 200, ROOM, 3 * ROOM + 1])


@given(
    sizes=st.lists(st.lists(SIZES, max_size=3), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 100_000), min_size=1),
)
@settings(max_examples=30, derandomize=True, deadline=None)
def test_frames_come_out_whole_and_in_order_wherever_the_stream_is_cut(sizes, cuts):
    rng = np.random.default_rng(0)
    contents = [[rng.integers(0, 256, size, dtype=np.uint8) for size in some] for some in sizes]
    stream = b"".join(
        bytes(piece)
        for number, content in enumerate(contents)
        for piece in pieces_of(number, content)
    )
    cuts = [max(cut, len(stream) // 500) for cut in cuts]
    found = received(stream, cuts)
    assert [number for number, _ in found] == list(range(len(contents)))
    for content, (_, body) in zip(contents, found, strict=True):
        for sent, got in zip(content, content_of(body), strict=True):
            np.testing.assert_array_equal(sent, got)


def test_large_arrays_are_sent_from_where_they_are_and_received_as_aligned_views():
    arrays = {
        "a": np.arange(3 * LARGE_BUFFER + 1, dtype=np.uint8),
        "b": np.arange(LARGE_BUFFER, dtype=np.float64),
    }
    pieces = pieces_of(7, arrays)
    assert (
        sum(
            np.shares_memory(np.frombuffer(piece, np.uint8), array)
            for piece in pieces
            for array in arrays.values()
        )
        == 2
    )
    body = bytearray(b"".join(bytes(piece) for piece in pieces)[HEAD.size :])
    found = content_of(body)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert np.shares_memory(found[name], np.frombuffer(body, np.uint8))
        assert found[name].flags.behaved, "aligned and writeable"


@pytest.mark.parametrize("size", [0, LARGEST_FRAME + 1])
def test_a_frame_that_nobody_sends_is_refused_before_memory_is_taken(size):
    with pytest.raises(ValueError, match=str(size)):
        received(HEAD.pack(size, 1), [HEAD.size])
