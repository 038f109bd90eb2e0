"""What travels over a line comes out as it went in, however it is cut on the way."""

import itertools
import os
import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom_dist.rpc import frames as frames_module
from worldloom_dist.rpc.frames import (
    BODY_PART,
    CODE_BYTES,
    HEAD,
    HEAD_PART,
    LARGE_BUFFER,
    LARGEST_FRAME,
    NONCE,
    ROOM,
    SEALED_BYTES,
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
) -> list[tuple[int, bytes | bytearray]]:
    """What a reader makes of bytes that come in parts of this size at most."""
    frames: list[tuple[int, bytes | bytearray]] = []
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


SIZES = st.sampled_from([0, 1, 100, LARGE_BUFFER - 1, LARGE_BUFFER, ROOM - 200, ROOM, 3 * ROOM + 1])


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


def sealed(mac: FrameMac, content: object, number: int = 1) -> bytes:
    return b"".join(bytes(piece) for piece in pieces_of(number, content, mac))


@pytest.mark.parametrize("size", [10, LARGE_BUFFER, 3 * ROOM])
def test_the_codes_of_a_frame_are_those_of_aes_gcm_over_its_head_and_its_body(size):
    mac = FrameMac(KEY)
    for number in range(3):
        frame = sealed(mac, np.zeros(size, np.uint8), number)
        body = frame[SEALED_BYTES:]
        known = HEAD.pack(len(body), number)
        known += AESGCM(KEY).encrypt(NONCE.pack(number, BODY_PART), b"", body)
        assert frame[: SEALED_BYTES - CODE_BYTES] == known
        code = AESGCM(KEY).encrypt(NONCE.pack(number, HEAD_PART), b"", known)
        assert frame[SEALED_BYTES - CODE_BYTES : SEALED_BYTES] == code


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

    def cipher(algorithm, mode):
        used.append((algorithm.key, mode.initialization_vector))
        return real(algorithm, mode)

    real = frames_module.Cipher
    monkeypatch.setattr(frames_module, "AESGCM", Noting)
    monkeypatch.setattr(frames_module, "Cipher", cipher)
    return used


def test_no_nonce_is_used_twice_for_what_is_sent(nonces):
    key, nonce = os.urandom(32), os.urandom(NONCE_BYTES)
    for caller_nonce in (os.urandom(NONCE_BYTES), os.urandom(NONCE_BYTES)):
        for mac in (
            Handshake(key, nonce, caller_nonce).caller_frames(),
            Handshake(key, nonce, caller_nonce).role_frames(),
        ):
            for size in (1, LARGE_BUFFER, ROOM, 3 * ROOM):
                sealed(mac, np.zeros(size, np.uint8))
                with pytest.raises(TypeError):
                    sealed(mac, [np.zeros(size, np.uint8), threading.Lock()])
                sealed(mac, b"")
    assert len(nonces) == 4 * 8 * 2
    assert len(set(nonces)) == len(nonces)
    assert len({key for key, _ in nonces}) == 4, "one key for each direction of each connection"


def test_threads_that_send_at_once_share_no_nonce(nonces):
    mac = FrameMac(KEY)
    threads = [
        threading.Thread(target=lambda: [mac.seal(HEAD.pack(1, 1), [b"x"]) for _ in range(200)])
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


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_body_is_handed_over_in_slices_that_the_cipher_takes(monkeypatch, most):
    parts = [bytes(range(100)), b"", b"z" * 55]
    mac = FrameMac(KEY)
    whole = mac.body_code(3, [b"".join(parts)])
    monkeypatch.setattr(frames_module, "MOST_AT_ONCE", most)
    assert mac.body_code(3, [b"".join(parts)]) == mac.body_code(3, parts) == whole


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), size=st.sampled_from([5, 3 * ROOM]))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_no_bit_of_a_frame_can_be_changed(at, bit, size):
    frame = bytearray(sealed(FrameMac(KEY), np.zeros(size, np.uint8)))
    frame[at % len(frame)] ^= 1 << bit
    with pytest.raises(FrameError):
        received(bytes(frame), [ROOM], FrameMac(KEY))


@pytest.mark.parametrize("size", [5, 3 * ROOM])
def test_frames_are_true_in_their_place_only(size):
    mac = FrameMac(KEY)
    frames = [sealed(mac, np.zeros(size, np.uint8)) for _ in range(3)]
    for order in itertools.permutations(range(3)):
        if order == (0, 1, 2):
            continue
        with pytest.raises(FrameError, match="did not send next"):
            received(b"".join(frames[n] for n in order), [ROOM], FrameMac(KEY))
    other = sealed(mac, np.ones(size, np.uint8))
    mixed = frames[0][:SEALED_BYTES] + other[SEALED_BYTES:]
    with pytest.raises(FrameError, match="is not what the other end sent"):
        received(mixed, [ROOM], FrameMac(KEY))
