"""What earlier releases put on wires and disks is read to the same values."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import json_format

from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import carry_resets_of, decode_rows, notes_of, split_rows
from worldloom_client.wire import message
from worldloom_dist.evaluate import evaluate
from worldloom_dist.launch import main as launch
from worldloom_dist.replay.__main__ import main as replay
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, DUPLICATE, Repeated, StoredChunk, unpack_head
from worldloom_dist.rpc.frames import FrameReader, content_of

DATA = Path(__file__).parents[1] / "data"
RELEASES = sorted(DATA.glob("release-*.tar.gz"))
AGENTS = ("tdmpc2", "dreamerv3")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name.split(".tar")[0])
def release(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_there_is_one_and_all_of_them_are_small():
    assert RELEASES
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_500_000


def test_calls_between_roles_are_read(release):
    frames = []
    reader = FrameReader(lambda number, body: frames.append((number, content_of(body))))
    stream = (release / "frames.bin").read_bytes()
    while stream:
        room = reader.free()
        count = min(len(room), len(stream))
        room[:count] = stream[:count]
        reader.arrived(count)
        stream = stream[count:]
    (first, (method, call)), (second, rest) = frames
    assert (first, second, method, call["slot"]) == (0, 1, "act", 3)
    assert rest == [True, None, "said", 1.5, b"bytes"]
    with np.load(release / "frames.npz") as expected:
        assert set(call["obs"]) == set(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(call["obs"][name], expected[name])
            assert call["obs"][name].dtype == expected[name].dtype


def test_messages_of_the_gateway_say_what_they_said(release):
    said = json.loads((release / "gateway.json").read_text())
    assert len(said) >= 19
    for name, expected in said.items():
        found = message(name).FromString((release / f"gateway/{name}.bin").read_bytes())
        assert json_format.MessageToDict(found, preserving_proto_field_name=True) == expected, name


def test_a_journal_is_read_to_the_same_rows(release):
    damage = JournalDamage()
    head, stored, repeated = read_journal(release / "journal", damage)
    assert damage == JournalDamage()
    assert (stored.kind, repeated.kind) == (CHUNK, DUPLICATE)
    assert unpack_head(head)["next_row"] == 0
    found = StoredChunk.unpack(stored.payload)
    chunk = found.chunk
    assert (found.first_row, found.inserted_s) == (0, 1.5)
    assert (chunk.stream, chunk.version) == (StreamId(1, 2, 0), PolicyVersion(1, 5))
    assert Repeated.unpack(repeated.payload) == Repeated.of(chunk)
    assert carry_resets_of(chunk.payload) == [2]
    assert notes_of(chunk.payload) == {"source": "a", "carry_resets": [2]}
    with np.load(release / "journal.npz") as expected:
        columns = {
            name: ArraySpec(expected[name].shape[1:], expected[name].dtype.name)
            for name in expected.files
        }
        kinds = {name: part.encoding for name, part in split_rows(chunk.payload, columns).items()}
        assert kinds["obs/image"] == "zstd"
        assert set(kinds.values()) == {"raw", "zstd"}
        rows = decode_rows(chunk.payload, columns)
        for name in expected.files:
            np.testing.assert_array_equal(rows[name], expected[name])


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_is_whole_evaluates_to_the_same_number_and_goes_on(release, agent):
    run = release / agent
    expected = json.loads((release / "expected.json").read_text())["returns"][agent]
    assert replay(["verify", str(run)]) == 0
    assert evaluate(run, episodes=2)["returns"] == pytest.approx(expected, rel=1e-3)
    before = json.loads((run / "summary.json").read_text())
    assert launch(["--resume", str(run), "--env-steps", "90"]) == 0
    after = json.loads((run / "summary.json").read_text())
    assert after["env_steps"] >= 90 > before["env_steps"]
    assert after["train_steps"] > before["train_steps"]
    assert replay(["verify", str(run)]) == 0
