"""The client in C++ is built and acts."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.worldloom_client.live import live

FOLDER = Path(__file__).parents[2] / "examples" / "gateway_cpp"
TOOLS = ("g++", "make", "protoc", "grpc_cpp_plugin", "pkg-config")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_client_in_cpp_acts_and_its_rows_are_stored(tmp_path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian: see examples/gateway_cpp/Makefile)")
    made = subprocess.run(
        ["make", "-C", str(FOLDER), f"OUT={tmp_path}/build", f"{tmp_path}/build/client"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with live() as server:
        done = subprocess.run(
            [str(tmp_path / "build/client"), server.address, "100"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "env toy:counting: 100 questions, 100 rows stored\n"
        (stream,) = server.rig.shard.writer.chunks
        rows = server.rig.shard.writer.rows(stream)
    assert rows["is_first"].sum() == 4
    assert rows["truncated"].sum() == 4
