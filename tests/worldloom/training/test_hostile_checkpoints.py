"""Checkpoints whose checksums are right and whose content is not: one documented error."""

import contextlib
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import CheckpointError
from worldloom.training.checkpoints import CheckpointStore
from worldloom.training.manifests import read_manifest
from worldloom.training.tree_files import load_tree, load_tree_file, save_tree, save_tree_file

TREE = {
    "learner": {
        "a": torch.arange(60.0).reshape(20, 3),
        "b": np.arange(5),
        "c": (1, 2.5, None, "x", float("inf")),
        "d": {1: 2, "k": [True, {"z": torch.ones(2)}]},
    },
    "agent": "tdmpc2:ci",
}
FILES = ("manifest.json", "tree.json", "tensors.safetensors")
NUMBERS = ["-1", "0", "1e999", "99999999999999999999", "null", "[]", '"a"', "{}", "NaN"]
MUTATION = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "zero", "repeat", "number"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
)


def mutated(data: bytes, mutation: tuple[str, float, int]) -> bytes:
    op, place, seed = mutation
    at = int(place * len(data))
    if op == "flip":
        return data[:at] + bytes([data[at] ^ (1 << seed % 8)]) + data[at + 1 :]
    if op == "cut":
        return data[:at]
    if op == "insert":
        return data[:at] + bytes((seed * k) % 256 for k in range(1 + seed % 30)) + data[at:]
    if op == "zero":
        return data[:at] + bytes(seed) + data[at + seed :]
    if op == "repeat":
        return data[:at] + data[at : at + 40] + data[at:]
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    one = found[int(place * len(found))]
    return data[: one.start()] + NUMBERS[seed % len(NUMBERS)].encode() + data[one.end() :]


def sealed(folder):
    """Give the files of a checkpoint their right sizes and checksums."""
    manifest = json.loads((folder / FILES[0]).read_text())
    for name in FILES[1:]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    (folder / FILES[0]).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of a checkpoint, and of one in a file."""
    folder = tmp_path_factory.mktemp("good")
    save_tree(folder / "step", TREE, {"step": 2})
    save_tree_file(folder / "one.pt", TREE, {"x": 1})
    paths = [*(folder / "step").iterdir(), folder / "one.pt"]
    return {path.name: path.read_bytes() for path in paths}


@given(name=st.sampled_from(FILES), mutation=MUTATION, is_sealed=st.booleans())
@settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_checkpoint_that_was_changed_raises_only_the_documented_error(
    good, tmp_path, name, mutation, is_sealed
):
    folder = tmp_path / "store" / "step-000000000002"
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in good.items():
        (folder / file).write_bytes(mutated(data, mutation) if file == name else data)
    if is_sealed and name != FILES[0]:
        sealed(folder)
    for read in (load_tree, read_manifest, CheckpointStore(tmp_path / "store").facts):
        with contextlib.suppress(CheckpointError):
            assert isinstance(read(folder), dict)
    CheckpointStore(tmp_path / "store").newest()


@given(mutation=MUTATION)
@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_checkpoint_file_that_was_changed_raises_only_the_documented_error(
    good, tmp_path, mutation
):
    path = tmp_path / "one.pt"
    path.write_bytes(mutated(good["one.pt"], mutation))
    with contextlib.suppress(CheckpointError):
        load_tree_file(path)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tree.json", DEEP),
        ("tree.json", '{"__tensor__": ["x"]}'),
        ("tree.json", '{"__array__": {}}'),
        ("tree.json", '{"__float__": []}'),
        ("tree.json", '{"__tuple__": 3}'),
        ("tree.json", '{"__int__x": 3}'),
        ("tree.json", "[1, 2]"),
        ("tensors.safetensors", '\x08\0\0\0\0\0\0\0{"a":1} '),
        ("manifest.json", DEEP),
        ("manifest.json", "[]"),
        ("manifest.json", '{"format": 1, "files": 3}'),
        (
            "manifest.json",
            '{"format": 1, "files": {"tree.json": 3, "tensors.safetensors": "bytes sha256"}}',
        ),
    ],
)
def test_content_that_no_version_writes_is_refused(tmp_path, name, text):
    folder = tmp_path / "step-000000000001"
    save_tree(folder, TREE, {"step": 1})
    (folder / name).write_text(text)
    if name != FILES[0]:
        sealed(folder)
    with pytest.raises(CheckpointError, match=str(folder)):
        load_tree(folder)
    assert CheckpointStore(tmp_path).newest() is None
