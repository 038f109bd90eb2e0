"""Another user of the same machine reaches nothing that is a run's own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worldloom_dist.rpc.answering import serving
from worldloom.core.keys import load_key
from worldloom.envs.consent import sign_run
from worldloom_dist.runtime.cluster import private_folder
from worldloom_dist.runtime.private_folders import release

OTHER = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
PROGRAM = "/usr/bin/python3"
"""One that every user may run; the tests' own may lie in a private folder."""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="becoming another user needs root and setpriv (Debian: apt install util-linux)",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="shared-host-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def as_other(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OTHER, *words], capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )


def ray_token(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from worldloom_dist.runtime.cluster import _prepare_environment

    monkeypatch.setattr(tempfile, "tempdir", str(place))
    folder = private_folder()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever is done to it here
    monkeypatch.setattr(os, "environ", dict(os.environ))
    _prepare_environment(folder)
    return folder / "token"


def gateway_key(place: Path, _: pytest.MonkeyPatch) -> Path:
    load_key(place / "gateway.key")
    return place / "gateway.key"


def owner_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    sign_run(place, "my_env:Room")
    return place / "worldloom/owner.key"


@pytest.mark.parametrize("secret", [ray_token, gateway_key, owner_key])
def test_no_secret_is_read_by_another_user(
    secret: Callable[[Path, pytest.MonkeyPatch], Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = secret(place, monkeypatch)
    try:
        assert path.read_bytes()
        assert as_other("ls", str(place)).returncode == 0, "they may look into the folder above"
        found = as_other("cat", str(path))
        assert found.returncode != 0
        assert "Permission denied" in found.stderr
        assert not found.stdout
        assert as_other("sh", "-c", f": > {path}").returncode != 0
    finally:
        release(path.parent)


KNOCK = """
import socket, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
assert len(line.recv(32)) == 32
line.sendall(bytes(64) + b"x" * 100)
try:
    print(len(line.recv(100)))
except ConnectionResetError:
    print(0)
"""


@pytest.mark.skipif(not os.access(PROGRAM, os.X_OK), reason=f"there is no {PROGRAM}")
def test_another_user_who_knocks_at_a_role_is_not_heard() -> None:
    with serving() as server:
        found = as_other(PROGRAM, "-c", KNOCK, str(server.address.port))
        assert found.returncode == 0, found.stderr
        assert found.stdout.strip() == "0"
        assert not server.asked
