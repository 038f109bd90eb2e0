"""What travels over a line comes out as it went in, however it is cut on the way."""

import itertools
import os
import struct
import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom_dist.rpc import frames as frames_module
from worldloom_dist.rpc.frames import (
    CODE_BYTES,
    HEAD,
    LARGE_BUFFER,
    LARGEST_FRAME,
    MOST_BUFFERS,
    NONCE,
    ROOM,
    SLICE_BYTES,
    TABLE,
    FrameBody,
    FrameError,
    FrameMac,
    FrameReader,
    content_of,
    pieces_of,
)
from worldloom_dist.rpc.handshake import NONCE_BYTES, Handshake

KEY = bytes(range(32))


def received(
    stream: bytes, cuts: list[int], mac: FrameMac | None = None
) -> list[tuple[int, FrameBody]]:
    """What a reader makes of bytes that come in parts of this size at most."""
    frames: list[tuple[int, FrameBody]] = []
    reader = FrameReader(lambda number, body: frames.append((number, body)), mac)
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


SIZES = st.sampled_from(
    [0, 1, 100, LARGE_BUFFER - 1, LARGE_BUFFER, ROOM, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES]
)


@given(
    sizes=st.lists(st.lists(SIZES, max_size=3), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 100_000), min_size=1),
    key=st.sampled_from([None, KEY]),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_frames_come_out_whole_and_in_order_wherever_the_stream_is_cut(sizes, cuts, key):
    rng = np.random.default_rng(0)
    contents = [[rng.integers(0, 256, size, dtype=np.uint8) for size in some] for some in sizes]
    sent_with, received_with = (FrameMac(key) if key else None for _ in range(2))
    stream = b"".join(
        bytes(piece)
        for number, content in enumerate(contents)
        for piece in pieces_of(number, content, sent_with)
    )
    cuts = [max(cut, len(stream) // 500) for cut in cuts]
    found = received(stream, cuts, received_with)
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
    ((_, body),) = received(b"".join(bytes(piece) for piece in pieces), [10**6])
    found = content_of(body)
    for array, (name, got), buffer in zip(
        arrays.values(), found.items(), body.buffers, strict=True
    ):
        np.testing.assert_array_equal(got, array)
        assert np.shares_memory(got, np.frombuffer(buffer, np.uint8)), name
        assert got.flags.behaved, "aligned and writeable"


def head_of(total, count, pickle_bytes, *sizes):
    return struct.pack(f"<4Q{len(sizes)}Q", total, 1, count, pickle_bytes, *sizes)


@pytest.mark.parametrize(
    "head",
    [
        head_of(0, 0, 5),
        head_of(2**64 - 1, 0, 5),
        head_of(16 + ROOM, 0, ROOM),
        head_of(16 + 2**63, 0, 2**63),
        head_of(16, MOST_BUFFERS + 2, 0),
        head_of(16, 2**61, 0),
        head_of(24 + LARGEST_FRAME + 1, 1, 0, LARGEST_FRAME + 1),
        head_of(32 + LARGEST_FRAME + 1, 2, 0, LARGEST_FRAME, 1),
        head_of(24, 1, 0, 0),
        head_of(24 + 2**32, 1, 0, 100_000),
    ],
)
@pytest.mark.parametrize("key", [None, KEY])
def test_a_frame_that_no_one_sends_is_refused_before_memory_is_taken(head, key, monkeypatch):
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(FrameError, match="a frame came that"):
        received(head, [100], FrameMac(key) if key else None)


def test_sizes_are_not_believed_without_their_code(monkeypatch):
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was taken"))
    codes = CODE_BYTES * (2**20 // SLICE_BYTES + 1)
    head = head_of(TABLE.size + 8 + codes + 2**20, 1, 0, 2**20)
    with pytest.raises(FrameError, match="did not send next"):
        received(head + bytes(ROOM), [100], FrameMac(KEY))


def test_what_no_frame_holds_is_refused_where_it_is_sent(monkeypatch):
    monkeypatch.setattr(frames_module, "LARGEST_FRAME", 2 * LARGE_BUFFER)
    arrays = [np.zeros(LARGE_BUFFER, np.uint8) for _ in range(3)]
    pieces_of(1, arrays[:2])
    with pytest.raises(ValueError, match="more than the 65,536 of a frame"):
        pieces_of(1, arrays)


@pytest.mark.parametrize("key", [None, KEY])
def test_a_first_part_fits_whatever_is_sent(monkeypatch, key):
    monkeypatch.setattr(frames_module, "LARGE_BUFFER", 64)
    monkeypatch.setattr(frames_module, "SLICE_BYTES", 64)
    macs = [FrameMac(key) if key else None for _ in range(2)]
    arrays = [np.full(100 + 50 * n, n % 251, np.uint8) for n in range(MOST_BUFFERS + 9)]
    pieces = pieces_of(1, arrays, macs[0])
    (count,) = struct.unpack_from("<Q", pieces[0], HEAD.size)
    assert count == MOST_BUFFERS + 1, "and the pickle with the rest"
    assert len(pieces[0]) <= ROOM - 32 * 2**10, "there would be room for a small pickle"
    ((_, body),) = received(b"".join(bytes(piece) for piece in pieces), [5000], macs[1])
    for sent, got in zip(arrays, content_of(body), strict=True):
        np.testing.assert_array_equal(sent, got)


def sealed(mac: FrameMac, content: object, number: int = 1) -> bytes:
    return b"".join(bytes(piece) for piece in pieces_of(number, content, mac))


@pytest.mark.parametrize("size", [10, LARGE_BUFFER, 3 * SLICE_BYTES + 5])
def test_the_codes_of_a_frame_are_those_of_aes_gcm_over_its_parts(size):
    def code(place, part, data):
        return AESGCM(KEY).encrypt(NONCE.pack(place, part), b"", data)

    mac = FrameMac(KEY)
    for place in range(3):
        array = np.random.default_rng(place).integers(0, 256, size, np.uint8)
        first, *buffers = pieces_of(7, array, mac)
        assert first[-CODE_BYTES:] == code(place, 0, first[:-CODE_BYTES])
        slices = [
            bytes(buffer[at : at + SLICE_BYTES])
            for buffer in buffers
            for at in range(0, len(buffer), SLICE_BYTES)
        ]
        codes = b"".join(code(place, part, data) for part, data in enumerate(slices, 1))
        begin = HEAD.size + TABLE.size + 8 * len(buffers)
        assert first[begin : begin + len(codes)] == codes
        assert len(slices) == (0, 1, 4)[(size > 10) + (size > LARGE_BUFFER)]


@pytest.fixture
def nonces(monkeypatch):
    """Key and nonce of everything that is authenticated, at either end."""
    used: list[tuple[bytes, bytes]] = []

    class Noting:
        def __init__(self, key):
            self.key = key

        def encrypt(self, nonce, data, known):
            used.append((self.key, nonce))
            return AESGCM(self.key).encrypt(nonce, data, known)

    monkeypatch.setattr(frames_module, "AESGCM", Noting)
    return used


def test_no_nonce_is_used_twice_for_what_is_sent(nonces):
    key, nonce = os.urandom(32), os.urandom(NONCE_BYTES)
    for caller_nonce in (os.urandom(NONCE_BYTES), os.urandom(NONCE_BYTES)):
        for mac in (
            Handshake(key, nonce, caller_nonce).caller_frames(),
            Handshake(key, nonce, caller_nonce).role_frames(),
        ):
            for size in (1, LARGE_BUFFER, 3 * SLICE_BYTES):
                sealed(mac, np.zeros(size, np.uint8))
                with pytest.raises(TypeError):
                    sealed(mac, [np.zeros(size, np.uint8), threading.Lock()])
                sealed(mac, b"")
                sealed(mac, bytes(size))
    assert len(nonces) == 4 * ((1 + 1 + 1) + (2 + 1 + 2) + (4 + 1 + 4 + 1))
    assert len(set(nonces)) == len(nonces)
    assert len({key for key, _ in nonces}) == 4, "one key for each direction of each connection"


def test_threads_that_send_at_once_share_no_nonce(nonces):
    mac = FrameMac(KEY)
    threads = [
        threading.Thread(target=lambda: [sealed(mac, bytes(LARGE_BUFFER)) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(nonces)) == len(nonces) == 4 * 200 * 2


def test_a_process_that_was_forked_off_seals_nothing_with_the_key_of_its_parent(monkeypatch):
    mac = FrameMac(KEY)
    sealed(mac, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(FrameError, match="has not opened it"):
        sealed(mac, 2)


@given(
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    size=st.sampled_from([5, 3 * ROOM, 2 * SLICE_BYTES]),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_no_bit_of_a_frame_can_be_changed(at, bit, size):
    frame = bytearray(sealed(FrameMac(KEY), np.zeros(size, np.uint8)))
    frame[at % len(frame)] ^= 1 << bit
    more = bytes(ROOM)  # for which a size may ask
    with pytest.raises(FrameError):
        received(bytes(frame) + more, [ROOM], FrameMac(KEY))


@pytest.mark.parametrize("size", [5, 2 * SLICE_BYTES])
def test_frames_are_true_in_their_place_only(size):
    mac = FrameMac(KEY)
    frames = [sealed(mac, np.zeros(size, np.uint8)) for _ in range(3)]
    for order in itertools.permutations(range(3)):
        if order == (0, 1, 2):
            continue
        with pytest.raises(FrameError, match="did not send next"):
            received(b"".join(frames[n] for n in order), [ROOM], FrameMac(KEY))
    other = sealed(mac, np.ones(size, np.uint8))
    half = len(other) - size // 2
    with pytest.raises(FrameError):
        received(frames[0][:half] + other[half:], [ROOM], FrameMac(KEY))


def test_slices_of_one_frame_cannot_change_places():
    array = np.repeat(np.arange(3, dtype=np.uint8), SLICE_BYTES)
    frame = sealed(FrameMac(KEY), array)
    begin = len(frame) - len(array)
    swapped = frame[:begin] + array[::-1].tobytes()
    with pytest.raises(FrameError, match="is not what the other end sent"):
        received(swapped, [10**6], FrameMac(KEY))
