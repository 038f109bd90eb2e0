"""Files of episodes that lie, bomb or are strange: their readers raise one documented error, and
take no more memory than the files let anybody expect.
"""

import contextlib
import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.sequence import rows_from_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training import ReplayBuffer
from worldloom_dist.replay.formats.episode_files import open_episodes, write_episode_file
from worldloom_dist.replay.formats.episode_rows import fit_rows

ENV = EnvSpec(name="toy", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))})
STEPS = 20
REFUSED = (CheckpointError, ConfigurationError)


def episodes():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        end = np.arange(STEPS) == STEPS - 1
        yield rows_from_gym(
            {"obs": rng.normal(size=(STEPS + 1, 3)).astype(np.float32)},
            {"action": rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)},
            rng.normal(size=STEPS).astype(np.float32),
            end & False,
            end,
        )


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for name in ("a.npz", "a.parquet"):
        write_episode_file(str(folder / name), ENV, episodes())
    return folder


def drain(path):
    opened = open_episodes(str(path))
    return sum(len(fit_rows(rows, ENV.columns(), str(path))["reward"]) for rows in opened.episodes)


def load(path):
    return len(ReplayBuffer.load(path))


def npy_of(shape, descr="<f4", data=b"\0" * 64):
    """An array of this header, whatever its data."""
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    head += b" " * ((64 - (10 + len(head) + 1) % 64) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + data


def with_array(good, path, name, raw, *, compress=False):
    with zipfile.ZipFile(good / "a.npz") as source, zipfile.ZipFile(path, "w") as out:
        for member in source.infolist():
            if member.filename != f"{name}.npy":
                out.writestr(member.filename, source.read(member))
        kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        out.writestr(f"{name}.npy", raw, compress_type=kind)
    return path


@pytest.mark.parametrize("reader", [drain, load])
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("actions", npy_of((10_000_000_000_000,))),
        ("actions", npy_of((3_000_000_000, 1))),
        ("obs", npy_of((80, 10_000_000_000_000))),
        ("rewards", npy_of((-80,))),
        ("dones", npy_of((80,), "|O")),
        ("obs", npy_of((80,), "|O")),
        ("episode_lengths", npy_of((2**62, 2**62), "<i8")),
        ("truncated", b"\x93NUMPY"),
        ("dones", npy_of((2**70,), "|b1")),
    ],
)
def test_an_array_that_claims_what_it_has_not_is_refused_before_it_is_allocated(
    good, tmp_path, reader, name, raw
):
    path = with_array(good, tmp_path / "f.npz", name, raw)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"f\.npz"):
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", [drain, load])
def test_a_deflate_bomb_is_refused(good, tmp_path, reader):
    count = 320 * 2**20
    raw = npy_of((count,), "|b1", bytes(count))
    path = with_array(good, tmp_path / "f.npz", "dones", raw, compress=True)
    del raw
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more than 500 times as much"):
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_a_parquet_file_of_repeated_values_is_refused(tmp_path):
    env = EnvSpec(name="toy", obs={"obs": ArraySpec((1000,))}, action={"action": ArraySpec((1,))})
    write_episode_file(str(tmp_path / "f.parquet"), env, ())
    schema = parquet.read_schema(tmp_path / "f.parquet")
    note = json.loads(schema.metadata[b"worldloom_env"])
    note["obs"]["obs"]["shape"] = [10**9, 10**9]
    table = pyarrow.table({name: [] for name in schema.names}).replace_schema_metadata(
        {b"worldloom_env": json.dumps(note).encode()}
    )
    parquet.write_table(table, tmp_path / "empty.parquet")
    assert drain(tmp_path / "empty.parquet") == 0
    count = 300_000
    columns = {name: pyarrow.array([0.0] * count) for name in schema.names}
    table = pyarrow.table(columns).replace_schema_metadata(schema.metadata)
    parquet.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(CheckpointError, match="more than 500 times as much"):
        drain(tmp_path / "f.parquet")


STRANGE = (
    lambda v: np.array(-5),
    lambda v: np.zeros((0,)),
    lambda v: v.astype("S3"),
    lambda v: v.astype(np.complex64) if v.dtype.kind in "fiu" else v,
    lambda v: np.full(v.shape, np.nan),
    lambda v: np.full(v.shape, 2**62, np.int64),
    lambda v: v[..., None, None],
    lambda v: v.reshape(-1),
    lambda v: v[:-1] if v.ndim else v,
    lambda v: np.concatenate([v, v]) if v.ndim else v,
    lambda v: np.full(v.shape, -1),
    lambda v: np.array("text"),
    lambda v: np.zeros(v.shape, "M8[s]"),
    lambda v: np.zeros(v.shape, [("a", "f4")]),
    lambda v: np.asfortranarray(v),
    lambda v: np.zeros((3, 0, 5)),
)


@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                *("obs", "actions", "rewards", "dones", "truncated", "episode_lengths"),
                *("final_obs", "final_obs_mask", "capacity", "action_dim", "obs_shape", "env_spec"),
            ]
        ),
        st.one_of(st.none(), st.sampled_from(range(len(STRANGE)))),
        min_size=1,
        max_size=2,
    )
)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_strange_arrays_raise_only_the_documented_error(good, tmp_path, changes):
    arrays = dict(np.load(good / "a.npz", allow_pickle=False))
    for name, change in changes.items():
        value = arrays.pop(name)
        if change is not None:
            arrays[name] = STRANGE[change](value)
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)
    for reader in (drain, load):
        with contextlib.suppress(*REFUSED):
            reader(path)


def mutated(data, op, place, seed):
    """Bytes with one change of a kind that disks, copies and people make."""
    at = int(place * len(data))
    if op == "flip":
        return data[:at] + bytes([data[at] ^ (1 << seed % 8)]) + data[at + 1 :]
    if op == "cut":
        return data[:at]
    if op == "insert":
        return data[:at] + bytes((seed * k) % 256 for k in range(1 + seed % 30)) + data[at:]
    if op == "zero":
        return data[:at] + bytes(40) + data[at + 40 :]
    return data[:at] + data[at : at + 40] + data[at:]


@pytest.mark.parametrize("name", ["a.npz", "a.parquet"])
@given(
    op=st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
    place=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 255),
)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_only_the_documented_error(good, tmp_path, name, op, place, seed):
    path = tmp_path / name
    path.write_bytes(mutated((good / name).read_bytes(), op, place, seed))
    for reader in (drain, load) if name == "a.npz" else (drain,):
        with contextlib.suppress(*REFUSED):
            reader(path)


TABLES = {
    "obs": [
        lambda n: pyarrow.array(range(n)),
        lambda n: pyarrow.array(["x"] * n),
        lambda n: pyarrow.array([{"a": 1}] * n),
        lambda n: pyarrow.array([[("a", 1)]] * n, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        lambda n: pyarrow.array([None] * n, pyarrow.list_(pyarrow.float32(), 3)),
        lambda n: pyarrow.array([[[1.0]]] * n),
    ],
    "episode": [
        lambda n: pyarrow.array(["x"] * n),
        lambda n: pyarrow.array([None] * n, pyarrow.int64()),
        lambda n: pyarrow.array([float("nan")] * n),
    ],
    "is_first": [lambda n: pyarrow.array(["a"] * n), lambda n: pyarrow.array([2] * n)],
    "reward": [
        lambda n: pyarrow.array([1] * n, pyarrow.decimal128(5)),
        lambda n: pyarrow.array([1] * n, pyarrow.timestamp("s")),
        lambda n: pyarrow.array([b"x"] * n),
    ],
}


@pytest.mark.parametrize(
    ("column", "number"),
    [(column, number) for column, kinds in TABLES.items() for number in range(len(kinds))],
)
def test_columns_of_other_kinds_raise_only_the_documented_error(good, tmp_path, column, number):
    table = parquet.read_table(good / "a.parquet")
    columns = {name: table.column(name) for name in table.column_names}
    columns[column] = TABLES[column][number](len(table))
    path = tmp_path / "f.parquet"
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(REFUSED, match=r"f\.parquet"):
        drain(path)


@pytest.mark.parametrize(
    "note",
    [
        b"[" * 100_000,
        b"[1]",
        b"1e999",
        *(
            json.dumps({"name": "x", "obs": {"obs": spec}, "action": {}}).encode()
            for spec in (
                {"shape": [-3], "dtype": "float32"},
                {"shape": [1e300], "dtype": "float32"},
                {"shape": [3], "dtype": "O"},
                {"shape": "x", "dtype": 3},
                None,
            )
        ),
    ],
)
def test_a_note_of_spaces_that_cannot_be_is_refused(good, tmp_path, note):
    table = parquet.read_table(good / "a.parquet")
    path = tmp_path / "f.parquet"
    parquet.write_table(table.replace_schema_metadata({b"worldloom_env": note}), path)
    with pytest.raises(REFUSED, match=r"f\.parquet"):
        drain(path)
    path = with_array(good, tmp_path / "f.npz", "env_spec", _bytes_array(note))
    with pytest.raises(REFUSED, match=r"f\.npz"):
        drain(path)


def _bytes_array(data):
    file = io.BytesIO()
    np.save(file, np.frombuffer(data, np.uint8))
    return file.getvalue()


def sources(folder, monkeypatch):
    """A source of every format, each with a folder of its own or one file."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    names = [str(folder / "a.npz"), str(folder / "a.parquet"), f"rllib:{folder / 'rllib'}"]
    names += [f"lerobot:{folder / 'lerobot'}", "minari:strange-v0"]
    for name in names:
        write_episode_file(name, ENV, episodes())
    places = ("a.npz", "a.parquet", "rllib", "lerobot", "minari/strange-v0")
    return [(name, folder / place) for name, place in zip(names, places, strict=True)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_among_the_files_of_a_source_is_not_waited_for(
    tmp_path, monkeypatch, kind
):
    pytest.importorskip("minari")
    for name, place in sources(tmp_path, monkeypatch):
        files = [place, *(path for path in place.rglob("*") if place.is_dir())]
        for path in (path for path in files if path.is_file()):
            kept = path.read_bytes()
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to("/dev/zero")
            with contextlib.suppress(*REFUSED):
                list(open_episodes(name).episodes)
            if path == place and path.suffix == ".npz":
                with pytest.raises(CheckpointError):
                    load(path)
            path.unlink()
            path.write_bytes(kept)
        assert list(open_episodes(name).episodes)


def test_what_a_parser_says_over_several_lines_is_one_sentence(good, tmp_path):
    data = bytearray((good / "a.parquet").read_bytes())
    size = int.from_bytes(data[-8:-4], "little")
    told = set()
    for place in range(len(data) - 8 - size, len(data) - 8, 3):
        path = tmp_path / "a.parquet"
        path.write_bytes(data[:place] + b"\xff\xff" + data[place + 2 :])
        try:
            drain(path)
        except REFUSED as error:
            told.add(str(error))
    assert told
    assert not [text for text in told if "\n" in text]


@pytest.mark.parametrize("number", [float("nan"), 0.5])
def test_a_number_of_an_episode_that_is_none_is_refused(good, tmp_path, number):
    table = parquet.read_table(good / "a.parquet")
    place = table.column_names.index("episode")
    numbers = pyarrow.array([number] * table.num_rows)
    path = tmp_path / "a.parquet"
    parquet.write_table(table.set_column(place, "episode", numbers), path)
    with pytest.raises(CheckpointError, match="whole numbers"):
        drain(path)
