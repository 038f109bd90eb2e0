"""Writes what this release puts on wires and disks into ``tests/data/release-VERSION.tar.gz``, for
later code to read: ``python -m tests.compat.make_release``. Made once for each release, never
again.

    frames.bin, frames.npz            calls between roles, and what is in them
    gateway/MESSAGE.bin, gateway.json every message with every field set, and what they say
    journal/, journal.npz             a shard's log: columns of every dtype, raw and compressed
    AGENT/                            a run folder, with checkpoints and replay
    expected.json                     numbers of the above
"""

import contextlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format, message_factory

import worldloom
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import make_chunk
from worldloom_client.wire import PACKAGE, POOL
from worldloom_dist.evaluate import evaluate
from worldloom_dist.launch import main as launch
from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.records import CHUNK, DUPLICATE, Repeated, StoredChunk
from worldloom_dist.rpc.frames import LARGE_BUFFER, pieces_of

DATA = Path(__file__).parents[1] / "data"
ROWS = 6
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
HEAD = {
    "next_row": 0,
    "first_row": 0,
    "agent_steps": 0,
    "lost": 0,
    "duplicate": 0,
    "online_queued": 0,
    "holes": [],
    "streams": [],
    "gaps": [],
}
AGENTS = ("tdmpc2:ci", "dreamerv3:ci")


def columns() -> dict[str, ArraySpec]:
    """Of the journal: one of every dtype, and an image, which is compressed."""
    kinds = {f"obs/{name}": ArraySpec((3,), name) for name in DTYPES}
    flags = {name: ArraySpec((), "bool") for name in ("is_first", "terminated", "truncated")}
    return {**kinds, "obs/image": ArraySpec((32, 32, 3), "uint8"), **flags}


def rows() -> dict[str, np.ndarray]:
    """Some of them, the same every time."""
    draw = np.random.default_rng(7)
    found = {
        name: (draw.random((ROWS, *spec.shape)) * 100).astype(spec.dtype)
        for name, spec in columns().items()
    }
    found["obs/image"][:] = np.arange(ROWS, dtype=np.uint8)[:, None, None, None]
    found["is_first"][:] = np.arange(ROWS) == 0
    found["terminated"][:] = found["truncated"][:] = False
    return found


def contents() -> dict[str, np.ndarray]:
    """Of the frames: small arrays inside the pickle, and large ones beside it."""
    large = np.arange(LARGE_BUFFER, dtype=np.float32)
    return {"small": np.arange(5, dtype=np.int64), "large": large, "empty": np.zeros((0, 3))}


def write_frames(folder: Path) -> None:
    calls = [("act", {"slot": 3, "obs": contents()}), [True, None, "said", 1.5, b"bytes"]]
    stream = [bytes(piece) for n, call in enumerate(calls) for piece in pieces_of(n, call)]
    (folder / "frames.bin").write_bytes(b"".join(stream))
    np.savez_compressed(folder / "frames.npz", **contents())


def filled(descriptor: Any, depth: int = 0) -> Any:
    """A message with every field set, to numbers and texts that follow from the fields' own."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.containing_oneof is not None and field is not field.containing_oneof.fields[0]:
            continue
        values = [value_of(field, depth)]
        if not (field.message_type is not None and field.message_type.GetOptions().map_entry):
            put(message, field, values)
    return message


def put(message: Any, field: Any, values: list[Any]) -> None:
    is_many = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
    if values[0] is None:
        return
    if is_many:
        getattr(message, field.name).extend(values)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(values[0])
    else:
        setattr(message, field.name, values[0])


def value_of(field: Any, depth: int) -> Any:
    if field.message_type is not None:
        return filled(field.message_type, depth + 1) if depth < 4 else None
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    kinds = {
        field.CPPTYPE_BOOL: True,
        field.CPPTYPE_FLOAT: field.number + 0.5,
        field.CPPTYPE_DOUBLE: field.number + 0.25,
    }
    if field.cpp_type == field.CPPTYPE_STRING:
        text = f"{field.name}-{field.number}"
        return text.encode() if field.type == field.TYPE_BYTES else text
    return kinds.get(field.cpp_type, field.number + 100)


def write_gateway(folder: Path) -> None:
    said = {}
    (folder / "gateway").mkdir()
    file = POOL.FindFileContainingSymbol(f"{PACKAGE}.PolicyService")
    for name, descriptor in file.message_types_by_name.items():
        message = filled(descriptor)
        (folder / "gateway" / f"{name}.bin").write_bytes(message.SerializeToString())
        said[name] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    (folder / "gateway.json").write_text(json.dumps(said, indent=1))


def write_journal(folder: Path) -> None:
    found = rows()
    chunk = make_chunk(
        StreamId(1, 2, 0), 0, PolicyVersion(1, 5), found, carry_resets=[2], notes={"source": "a"}
    )
    journal = Journal(folder / "journal")
    journal.rotate(json.dumps(HEAD).encode())
    journal.append(CHUNK, StoredChunk(chunk, 0, 0, 1.5).pack())
    journal.append(DUPLICATE, Repeated.of(chunk).pack())
    journal.close()
    (folder / "journal/lock").unlink()
    np.savez_compressed(folder / "journal.npz", **found)


def write_runs(folder: Path) -> dict[str, Any]:
    returns = {}
    for agent in AGENTS:
        name = agent.partition(":")[0]
        run = folder / name
        words = [*TINY[agent], "--env", "toy:point", "--env-steps", "60", "--metrics-port", "0"]
        with contextlib.chdir(folder):
            assert launch([*words, "--run-dir", name]) == 0
        returns[name] = evaluate(run, episodes=2)["returns"]
        for file in ("lock", "console.log"):  # the one is empty, the other of this machine
            (run / file).unlink()
    return returns


def main() -> None:
    target = DATA / f"release-{worldloom.__version__}.tar.gz"
    if target.exists():
        sys.exit(f"{target} is there: what a release wrote does not change; raise the version")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_frames(folder)
        write_gateway(folder)
        write_journal(folder)
        facts = {"commit": commit.stdout.strip(), "returns": write_runs(folder)}
        (folder / "expected.json").write_text(json.dumps(facts, indent=1))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
    target.write_bytes(out.getvalue())
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
