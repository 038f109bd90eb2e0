import pickle
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import (
    EncodedColumn,
    carry_resets_of,
    decode_rows,
    encode_rows,
    make_chunk,
    split_rows,
)

COLUMNS = {
    "obs/camera": ArraySpec((32, 32, 3), "uint8"),
    "obs/vector": ArraySpec((5,)),
    "action": ArraySpec((), "int64"),
    "reward": ArraySpec(()),
    "is_first": ArraySpec((), "bool"),
    "terminated": ArraySpec((), "bool"),
    "truncated": ArraySpec((), "bool"),
    "latent": ArraySpec((4,), "uint16"),
}


def make_rows(count, *, noise=False, seed=0):
    rng = np.random.default_rng(seed)
    rows = {name: spec.zeros(count) for name, spec in COLUMNS.items()}
    if noise:
        rows["obs/camera"] = rng.integers(0, 256, rows["obs/camera"].shape, dtype=np.uint8)
    rows["obs/vector"] = rng.normal(size=(count, 5)).astype(np.float32)
    rows["latent"] = rng.integers(0, 1 << 16, (count, 4)).astype(np.uint16)
    rows["is_first"][0] = True
    return rows


@given(count=st.integers(1, 70), noise=st.booleans())
@settings(max_examples=50, derandomize=True, deadline=None)
def test_decoded_rows_equal_the_encoded_ones(count, noise):
    rows = make_rows(count, noise=noise)
    decoded = decode_rows(encode_rows(rows), COLUMNS)
    assert list(decoded) == list(rows)
    for name, array in rows.items():
        np.testing.assert_array_equal(decoded[name], array)
        assert decoded[name].dtype == array.dtype


def test_images_are_compressed_only_when_it_pays():
    flat, noisy = (
        split_rows(encode_rows(make_rows(64, noise=n)), COLUMNS)["obs/camera"]
        for n in (False, True)
    )
    assert flat.encoding == "zstd"
    assert len(flat.blob) < flat.decoded_bytes / 50
    assert noisy.encoding == "raw"
    assert len(noisy.blob) == noisy.decoded_bytes


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_payload_with_any_altered_byte_is_refused(position, flip):
    payload = bytearray(encode_rows(make_rows(8)))
    payload[int(position * len(payload))] ^= flip
    with pytest.raises(CheckpointError):
        decode_rows(bytes(payload), COLUMNS)


@given(keep=st.floats(0, 1, exclude_max=True))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_torn_payload_is_refused(keep):
    payload = encode_rows(make_rows(8))
    with pytest.raises(CheckpointError):
        decode_rows(payload[: int(keep * len(payload))], COLUMNS)


@pytest.mark.parametrize(
    "changed",
    [
        {"obs/vector": ArraySpec((6,))},
        {"obs/vector": ArraySpec((5,), "float64")},
        {"extra": ArraySpec(())},
    ],
)
def test_rows_of_another_layout_are_refused_by_name(changed):
    with pytest.raises(ShapeMismatchError, match=next(iter(changed))):
        decode_rows(encode_rows(make_rows(3)), COLUMNS | changed)


@pytest.mark.parametrize("noise", [False, True], ids=["compressed", "raw"])
def test_a_column_decodes_to_where_it_belongs(noise):
    rows = make_rows(8, noise=noise)
    column = split_rows(encode_rows(rows), COLUMNS)["obs/camera"]
    assert (column.encoding == "zstd") != noise
    target = np.ones((10, 32, 32, 3), np.uint8)
    column.decode_into(target[1:9])
    assert np.array_equal(target[1:9], rows["obs/camera"])
    assert target[[0, 9]].all()


@pytest.mark.parametrize("rows", [7, 9])
def test_a_column_that_decodes_to_another_size_is_refused(rows):
    column = split_rows(encode_rows(make_rows(8)), COLUMNS)["obs/camera"]
    wrong = column._replace(shape=(rows, 32, 32, 3))
    with pytest.raises(CheckpointError, match="decode"):
        wrong.decode_into(np.empty(wrong.shape, np.uint8))
    with pytest.raises(CheckpointError, match="decode"):
        column._replace(blob=bytes(column.blob)[:-3]).decode_into(np.empty(column.shape, np.uint8))


def test_columns_of_unequal_length_are_refused():
    rows = make_rows(3)
    rows["reward"] = rows["reward"][:2]
    with pytest.raises(ShapeMismatchError, match="one length"):
        encode_rows(rows)


def test_a_chunk_counts_its_rows_and_decisions():
    rows = make_rows(7)
    rows["is_first"][4] = True
    chunk = make_chunk(StreamId(1, 2, 3), 9, NO_POLICY, rows)
    assert (chunk.num_rows, chunk.num_agent_steps, chunk.seq) == (7, 5, 9)
    np.testing.assert_array_equal(
        decode_rows(chunk.payload, COLUMNS)["obs/vector"], rows["obs/vector"]
    )


def test_marked_rows_are_found_again_and_change_nothing_else():
    rows = make_rows(7)
    plain = make_chunk(StreamId(1, 2, 3), 9, NO_POLICY, rows)
    marked = make_chunk(StreamId(1, 2, 3), 9, NO_POLICY, rows, [2, 5])
    assert carry_resets_of(plain.payload) == []
    assert carry_resets_of(memoryview(marked.payload)) == [2, 5]
    assert make_chunk(StreamId(1, 2, 3), 9, NO_POLICY, rows, []) == plain, (
        "as chunks were before rows could be marked"
    )
    assert list(split_rows(marked.payload, COLUMNS)) == list(COLUMNS)
    for name, array in rows.items():
        np.testing.assert_array_equal(decode_rows(marked.payload, COLUMNS)[name], array)


def test_the_checksum_is_the_crc32_of_everybody():
    payload = encode_rows(make_rows(9, noise=True))
    assert int.from_bytes(payload[4:8], "little") == zlib.crc32(payload[8:])


def test_a_chunk_travels_out_of_band_and_is_received_as_a_view_without_a_copy():
    chunk = make_chunk(StreamId(1, 2, 3), 4, NO_POLICY, make_rows(9, noise=True))
    buffers = []
    frame = pickle.dumps(chunk, 5, buffer_callback=buffers.append)
    shared = bytearray(buffers[0].raw())
    received = pickle.loads(frame, buffers=[shared])
    assert received == chunk
    assert len(frame) < 500
    rows = split_rows(received.payload, COLUMNS)
    before = rows["obs/camera"].decode()[0, 0, 0, 0]
    kept = rows["obs/camera"].owned()
    shared[shared.find(bytes(rows["obs/camera"].blob))] ^= 255
    assert rows["obs/camera"].decode()[0, 0, 0, 0] == before ^ 255, (
        "a view follows the memory it looks at"
    )
    assert kept.decode()[0, 0, 0, 0] == before, "what is kept does not"
    assert pickle.loads(pickle.dumps(chunk, 4)) == chunk


def test_a_frame_that_was_made_elsewhere_is_kept_where_this_codec_would_have_made_one() -> None:
    pictures = np.zeros((4, 32, 32, 3), np.uint8)
    pictures[1] = 7
    frame = zstandard.ZstdCompressor(level=3).compress(pictures.tobytes())
    column = EncodedColumn.of_frame(frame, pictures)
    assert column is not None
    rows = {"obs": column, "is_first": np.zeros(4, bool)}
    specs = {"obs": ArraySpec((32, 32, 3), "uint8"), "is_first": ArraySpec((), "bool")}
    payload = encode_rows(rows)
    assert frame in payload
    assert np.array_equal(decode_rows(payload, specs)["obs"], pictures)
    for other in (pictures[:, :4, :4], pictures.astype(np.int32)):
        frame = zstandard.ZstdCompressor().compress(other.tobytes())
        assert EncodedColumn.of_frame(frame, other) is None
    noise = np.random.default_rng(0).integers(0, 255, 4096, np.uint8)
    assert (
        EncodedColumn.of_frame(zstandard.ZstdCompressor().compress(noise.tobytes()), noise) is None
    )


def test_a_frame_whose_reader_would_need_much_memory_is_not_kept() -> None:
    zeros = np.zeros(16 << 20, np.uint8)
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = compressor.compress(zeros.tobytes()) + compressor.flush()
    assert EncodedColumn.of_frame(frame, zeros) is None
