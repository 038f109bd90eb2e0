"""A client in another network namespace, over TLS, through a cut of the line and, where the kernel
has netem, with delay and loss: it goes on, and no row is lost or doubled.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import live
from tests.worldloom_client.test_session import joined
from tests.worldloom_dist.gateway.certificates import make_authority, make_signed
from tests.worldloom_dist.gateway.parts import contract_of
from worldloom.envs.toy import CountingEnv
from worldloom_dist.gateway.server import Access

TOKEN = "0123456789abcdef0123456789abcdef"
STEPS = 400
CUT_S = 4.0
CLIENT = """
import sys, time
from worldloom.envs.toy import CountingEnv
from worldloom_client import connect, drive
folder, address, steps = sys.argv[1:]
class Slow(CountingEnv):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)
with connect(address, ca=folder + "/ca.pem", token=folder + "/token", timeout_s=90) as session:
    drive(Slow(), session, steps=int(steps), seed=0)
print(session.stored[0], len(session.streams))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def other_machine():
    """The name of a namespace that reaches ours over a line of its own, the line's name, and our
    address on it, which no other such line has.
    """
    name = f"wl{uuid.uuid4().hex[:6]}"
    net = f"10.77.{uuid.uuid4().int % 256}"
    line = f"{name}a"
    try:
        ip("netns", "add", name)
        ip("link", "add", line, "type", "veth", "peer", "name", f"{name}b")
        ip("link", "set", f"{name}b", "netns", name)
        ip("addr", "add", f"{net}.1/24", "dev", line)
        ip("link", "set", line, "up")
        ip("-n", name, "addr", "add", f"{net}.2/24", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        yield name, line, f"{net}.1"
    finally:
        subprocess.run(["ip", "link", "del", line], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def has_namespaces() -> bool:
    if not shutil.which("ip") or os.geteuid() != 0:
        return False
    try:
        with other_machine():
            return True
    except subprocess.CalledProcessError:
        return False


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_client_on_another_machine_goes_on_after_a_cut(tmp_path) -> None:
    if not has_namespaces():
        pytest.skip("network namespaces cannot be made here (needs root and iproute2)")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    with other_machine() as (namespace, line, host):
        make_signed(tmp_path, make_authority(tmp_path), "server", host)
        access = Access(
            host=host,
            certificate=tmp_path / "server.pem",
            key=tmp_path / "server.key",
            token_file=token,
        )
        access.check()
        netem = ["tc", "qdisc", "add", "dev", line, "root", "netem", "delay", "50ms", "loss", "5%"]
        subprocess.run(netem, check=False, capture_output=True)  # not every kernel has it
        with live(access, contract=contract_of(lease_s=1.0)) as server:
            command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CLIENT]
            address = f"{host}:{server.thread.port}"
            client = subprocess.Popen(
                [*command, str(tmp_path), address, str(STEPS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            deadline = time.monotonic() + 60
            while server.rig.gateway.meter.questions < 50 and time.monotonic() < deadline:
                time.sleep(0.05)
            ip("link", "set", line, "down")
            time.sleep(CUT_S)
            assert server.rig.gateway.num_sessions == 0  # its lease is over
            ip("link", "set", line, "up")
            out, err = client.communicate(timeout=200)
            assert client.returncode == 0, err
            stored, sessions = map(int, out.split())
            assert sessions == 2
            rows = joined(server.rig.shard)
    assert stored == len(rows["reward"]) > STEPS
    # where the lease ended, the row that was seen last counts as truncated
    cut = rows["truncated"] & ~_is_end(rows)
    assert cut.sum() <= 2
    rows["truncated"] &= _is_end(rows)
    check_counting_rows(rows)


def _is_end(rows):
    """Rows that are the last ones of their episodes, as the env counts them."""
    lengths = np.array(CountingEnv.LENGTHS)[rows["obs"][:, 0].astype(int) % 5]
    return rows["obs"][:, 1] == lengths
